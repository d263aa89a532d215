// The list of episodes: chosen by what the address says, rows added as one scrolls.

const SLICE = 120;
const COLUMNS = [
  ['outcome', '✓', (it) => (it.broken ? 2 : it.success ? 0 : 1)],
  ['task', 'task', (it) => `${it.env} ${it.task.replace(/\d+/g, (digits) => digits.padStart(9, '0'))} ${it.attempt}`],
  ['row', 'policy', (it) => it.row],
  ['kind', 'kind', (it) => it.kind || ''],
  ['failure', 'failure', (it) => it.failure || ''],
  ['turns', 'turns', (it) => (it.turns || []).length],
  ['calls', 'calls', (it) => it.calls],
  ['tokens', 'tokens', (it) => it.tokens],
  ['score', 'score', (it) => (it.score === undefined ? it.reward : it.score)],
  ['step', 'step', (it) => (it.step === undefined ? -1 : it.step)],
];
const NARROW = new Set(['outcome', 'task', 'row', 'failure']);

function textOf(it) {
  it.found = it.found || [
    ...it.opening.map(([, place]) => store.data.texts[place]), it.error || '', it.kind || '', it.failure || '', it.task,
    ...(it.turns || []).flatMap((turn) => [turn.text, ...(turn.calls || []).map((call) => call.result), ...(turn.more || []).map((message) => message[1])]),
  ].join('\n').toLowerCase();
  return it.found;
}

const CHOICES = {
  row: (it) => String(it.row), env: (it) => it.env, kind: (it) => it.kind || '', level: (it) => it.level || '',
  outcome, failure: (it) => it.failure || '', task: (it) => it.task,
};
function chosen(query) {
  const wanted = Object.keys(CHOICES).filter((name) => query.get(name)).map((name) => [CHOICES[name], query.get(name)]);
  const needle = (query.get('q') || '').toLowerCase();
  const found = store.data.episodes.filter((it) => wanted.every(([of, value]) => of(it) === value) && (!needle || textOf(it).includes(needle))
    && (!query.get('scored') || it.turns && it.turns.some((turn) => turn.score)));
  const [name, down] = (query.get('sort') || '').split('.');
  const column = COLUMNS.find(([key]) => key === name);
  if (column) {
    const of = column[2], sign = down ? -1 : 1;
    const keyed = found.map((it, place) => [of(it), place, it]);
    keyed.sort(([a, i], [b, j]) => sign * (a < b ? -1 : a > b ? 1 : 0) || i - j);
    return keyed.map((it) => it[2]);
  }
  return found;
}

function listPage({ query }) {
  const state = Object.fromEntries(query);
  const change = (name, value) => {
    const next = { ...state, [name]: value };
    history.replaceState(null, '', listAddress(next));
    Object.assign(state, { [name]: value });
    if (!value) delete state[name];
    refill();
  };
  const options = (name, all, told = (it) => it) => {
    const values = [...new Set(store.data.episodes.map(CHOICES[name]))].filter(Boolean);
    if (name !== 'row') values.sort();
    if (values.length < 2 && !state[name]) return null;
    return el('select', { 'aria-label': all, onchange: (event) => change(name, event.target.value) },
      el('option', { value: '' }, all), values.map((value) => el('option', { value, selected: state[name] === value }, told(value))));
  };
  const count = el('span', { class: 'count', role: 'status' });
  let waiting = 0;
  const search = el('input', { type: 'search', id: 'search', placeholder: 'Search the text  ( / )', 'aria-label': 'Search the text of episodes', value: state.q || '',
    oninput: (event) => { clearTimeout(waiting); const value = event.target.value; waiting = setTimeout(() => change('q', value), 120); } });
  const scored = store.data.episodes.some((it) => (it.turns || []).some((turn) => turn.score));
  const bar = el('form', { class: 'filters', role: 'search', onsubmit: (event) => event.preventDefault() }, search,
    options('row', 'every policy', (it) => store.data.rows[it].label), options('env', 'every environment', short), options('kind', 'every kind'),
    options('level', 'every level'), options('outcome', 'every outcome'), options('failure', 'every failure'),
    scored && el('label', { class: 'check' }, el('input', { type: 'checkbox', checked: !!state.scored, onchange: (event) => change('scored', event.target.checked ? '1' : '') }), 'with scores'), count);
  const columns = COLUMNS.filter(([key]) => key !== 'step' || store.data.episodes.some((it) => it.step !== undefined));
  const heads = columns.map(([key, heading]) => el('th', { scope: 'col', class: NARROW.has(key) ? key : `${key} wider` },
    el('button', { type: 'button', 'aria-label': `sort by ${key === 'outcome' ? key : heading}`, onclick: () => {
      change('sort', state.sort === key ? `${key}.down` : state.sort === `${key}.down` ? '' : key);
    } }, heading, el('span', { class: 'arrow', 'aria-hidden': 'true' }))));
  const body = el('tbody', {}), more = el('p', { class: 'more' });
  const watch = new IntersectionObserver((seen) => { if (seen.some((it) => it.isIntersecting)) grow(); }, { rootMargin: '600px' });
  const grow = () => {
    const from = body.rows.length, next = store.shown.slice(from, from + SLICE);
    body.append(...next.map((it) => listed(it, columns)));
    const left = store.shown.length - body.rows.length;
    more.textContent = left > 0 ? `${number(left)} more` : '';
  };
  const refill = () => {
    store.shown = chosen(new URLSearchParams(state));
    store.list = location.hash;
    const solved = store.shown.filter((it) => it.success).length;
    count.textContent = `${many(store.shown.length, 'episode')}, ${number(solved)} solved`;
    columns.forEach(([key], index) => {
      const way = state.sort === key ? 'ascending' : state.sort === `${key}.down` ? 'descending' : null;
      if (way) heads[index].setAttribute('aria-sort', way); else heads[index].removeAttribute('aria-sort');
      heads[index].querySelector('.arrow').textContent = way ? (way === 'ascending' ? ' ↑' : ' ↓') : '';
    });
    body.replaceChildren();
    more.textContent = '';
    grow();
    if (!store.shown.length) more.textContent = 'No episode is like that: loosen a filter.';
  };
  store.grow = grow;
  refill();
  watch.observe(more);
  return [el('h1', { class: 'quiet' }, 'Episodes'), bar,
    el('table', { class: 'list' }, el('thead', {}, el('tr', {}, heads)), body), more];
}

function listed(it, columns) {
  const cells = {
    outcome: () => mark(it),
    task: () => el('a', { href: place(it), id: `at-${it.id}` }, title(it)),
    row: () => [svg('svg', { viewBox: '0 0 14 14', width: 12, height: 12, 'aria-hidden': 'true' }, dot(rowOf(it).look, 7, 7, '', 4.5)), ` ${rowOf(it).label}`],
    kind: () => it.kind, failure: () => it.failure || '', turns: () => (it.turns || []).length,
    calls: () => [it.calls, it.refused ? el('span', { class: 'warn', title: 'calls that did not go through' }, ` ${it.refused}✗`) : null],
    tokens: () => number(it.tokens), score: () => number(it.score === undefined ? it.reward : it.score, 2), step: () => (it.step === undefined ? '' : it.step),
  };
  return el('tr', { onclick: (event) => { if (!event.target.closest('a')) location.hash = place(it); } },
    columns.map(([key]) => el('td', { class: NARROW.has(key) ? key : `${key} wider` }, cells[key]())));
}

/** Move the selection; returns false where there is no list. */
function walkList(by) {
  const links = [...document.querySelectorAll('.list tbody a')];
  if (!links.length) return false;
  let at = links.indexOf(document.activeElement);
  if (at < 0 && store.last) at = links.findIndex((it) => it.id === `at-${store.last}`) - (by > 0 ? 1 : -1);
  at = Math.max(0, Math.min(links.length - 1, at + by));
  if (at > links.length - 10) store.grow();
  links[at].focus();
  links[at].scrollIntoView({ block: 'nearest' });
  return true;
}
