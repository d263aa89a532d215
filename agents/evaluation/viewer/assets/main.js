// What the address says is drawn; keys; and in `journeyman view` a look every two seconds.

const PAGES = { overview: overviewPage, episodes: listPage, episode: episodePage, rows: rowsPage, side: sidePage };
const UP = { episodes: () => '#/', episode: (at) => (at.parts[1] === 'tree' ? `#/episode/${at.parts[0]}` : store.list || '#/episodes'), rows: () => '#/', side: () => (history.length > 1 ? null : '#/rows') };

function draw(keep) {
  const at = address();
  const make = PAGES[at.page] || missing;
  const main = $('main'), top = scrollY;
  main.className = at.page;
  main.replaceChildren(...make(at).flat().filter(Boolean));
  document.querySelectorAll('nav a').forEach((it) => {
    const here = it.dataset.page === at.page || (it.dataset.page === 'episodes' && at.page === 'episode') || (it.dataset.page === 'rows' && at.page === 'side');
    if (here) it.setAttribute('aria-current', 'page'); else it.removeAttribute('aria-current');
  });
  const heading = main.querySelector('h1');
  document.title = `${heading ? heading.textContent.trim() : store.data.title} · Journeyman`;
  drawPanels();
  if (keep) { scrollTo(0, top); return; }
  scrollTo(0, 0);
  const turn = at.page === 'episode' && Number(at.parts[1]) && $(`turn-${at.parts[1]}`);
  const last = at.page === 'episodes' && store.last && $(`at-${store.last}`);
  if (turn) { turn.tabIndex = -1; turn.focus({ preventScroll: true }); turn.scrollIntoView({ block: 'center' }); }
  else if (last) { last.focus({ preventScroll: true }); last.scrollIntoView({ block: 'center' }); }
  else if (at.page === 'episode' && at.parts[1] === 'tree') main.querySelector('[role=treeitem]').focus();
}

const KEYS = {
  '/': () => { if (address().page !== 'episodes') { location.hash = store.list || '#/episodes'; draw(); } const box = $('search'); if (box) { box.focus(); box.select(); } },
  '?': () => $('keys').showModal(),
  t: toggleTheme, o: () => { location.hash = '#/'; }, e: () => { location.hash = store.list || '#/episodes'; }, c: () => { location.hash = '#/rows'; },
  j: () => walk(1), k: () => walk(-1), ArrowDown: () => walkList(1), ArrowUp: () => walkList(-1),
  Escape: () => {
    const at = address(), up = UP[at.page];
    if (!up) return;
    const to = up(at);
    if (to) location.hash = to; else history.back();
  },
};
function walk(by) {
  const at = address();
  if (at.page !== 'episode') return walkList(by);
  const to = store.shown[store.shown.findIndex((it) => it.id === at.parts[0]) + by];
  if (to) location.replace(place(to));
  return true;
}
document.addEventListener('keydown', (event) => {
  const typing = event.target.closest('input, select, textarea');
  if (event.ctrlKey || event.metaKey || event.altKey || $('keys').open) return;
  if (typing) { if (event.key === 'Escape') event.target.blur(); return; }
  const act = KEYS[event.key];
  if (act && act() !== false) event.preventDefault();
});
$('theme').addEventListener('click', toggleTheme);
$('help').addEventListener('click', KEYS['?']);
addEventListener('hashchange', () => draw());
let resized = 0;
addEventListener('resize', () => { clearTimeout(resized); resized = setTimeout(drawPanels, 80); });

function told(words) { $('live').textContent = words; }
async function follow() {
  let seen = null;
  for (;;) {
    try {
      const version = await (await fetch('/version')).json();
      if (version !== seen) {
        const data = await (await fetch('/data')).json();
        seen = version;
        const first = !store.data;
        take(data);
        // Whoever types or reads is not disturbed: a list is drawn anew when it is next come to.
        if (first || !(document.activeElement.closest('main') || getSelection().toString())) draw(!first);
      }
      told('● live');
    } catch { told('○ the server is gone'); }
    await new Promise((done) => setTimeout(done, 2000));
  }
}

const embedded = JSON.parse($('data').textContent);
if (embedded) { take(embedded); draw(); } else follow();
