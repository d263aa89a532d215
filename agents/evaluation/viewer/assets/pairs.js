// Two policies task by task, and two episodes side by side.

function rowsPage({ parts, query }) {
  const { rows } = store.data;
  if (rows.length < 2) return [el('h1', {}, 'Compare'), el('p', {}, 'There is one policy alone. Name more runs, or play more rows.')];
  const [a, b] = [parts[0] || firstPair()[0], parts[1] || firstPair()[1]].map(Number);
  if (!rows[a] || !rows[b]) return missing();
  const which = query.get('only') || '';
  const go = (x, y, only = '') => { location.hash = `#/rows/${x}/${y}${only ? `?only=${only}` : ''}`; };
  const choice = (value, label, change) => el('label', {}, label, el('select', { onchange: (event) => change(event.target.value) },
    rows.map((row, index) => el('option', { value: index, selected: index === value }, row.label))));
  const tasks = paired(a, b), groups = { first: [], second: [], both: [], neither: [] };
  for (const it of tasks) groups[it.first === it.second ? (it.first ? 'both' : 'neither') : it.first > it.second ? 'first' : 'second'].push(it);
  const names = { first: `${rows[a].label} does better`, second: `${rows[b].label} does better`, both: 'both alike', neither: 'neither solves' };
  const shown = which ? groups[which] || [] : [...groups.second, ...groups.first, ...groups.neither, ...groups.both];
  return [
    el('h1', {}, 'Compare two policies'),
    el('form', { class: 'filters', onsubmit: (event) => event.preventDefault() }, choice(a, 'First ', (value) => go(value, b, which)), choice(b, 'Second ', (value) => go(a, value, which))),
    el('div', { class: 'tiles' }, Object.entries(names).map(([key, name]) => el('a', { class: `tile ${key}`, href: `#/rows/${a}/${b}${which === key ? '' : `?only=${key}`}`, 'aria-current': which === key ? 'true' : null },
      el('strong', {}, number(groups[key].length)), name))),
    el('p', { class: 'note' }, `${many(tasks.length, 'task')} that both played`),
    el('table', { class: 'list pairs' }, el('thead', {}, el('tr', {}, ['task', rows[a].label, rows[b].label, ''].map((it) => el(it ? 'th' : 'td', it ? { scope: 'col' } : {}, it)))),
      el('tbody', {}, shown.slice(0, 400).map((it) => el('tr', {}, el('td', {}, title(it.a)), el('td', {}, share(it.first, it.a)), el('td', {}, share(it.second, it.b)),
        el('td', {}, el('a', { href: `#/side/${it.a.id}/${it.b.id}` }, 'side by side')))))),
    shown.length > 400 && el('p', { class: 'more' }, `${number(shown.length - 400)} more: choose a group above`),
  ];
}
const share = (rate, it) => [mark(it), ' ', el('small', {}, rate > 0 && rate < 1 ? percent(rate) : it.failure || '')];

function firstPair() {
  const { rows } = store.data, played = rows.filter((row) => !row.training);
  const name = (wanted) => played.find((row) => row.label.endsWith(wanted));
  const known = [name('student before'), name('student after')];
  if (known[0] && known[1]) return known.map((row) => row.index);
  const own = played.filter((row) => !row.scripted), all = own.length > 1 ? own : rows;
  return [all[0].index, all[1].index];
}

/** Tasks that both rows played, with the share of attempts that each solved. */
function paired(a, b) {
  const found = [];
  for (const its of store.byTask.values()) {
    const [first, second] = [a, b].map((row) => its.filter((it) => it.row === row && !it.broken));
    if (!first.length || !second.length) continue;
    const rate = (of) => of.filter((it) => it.success).length / of.length;
    found.push({ a: first[0], b: second[0], first: rate(first), second: rate(second) });
  }
  return found;
}

function sidePage({ parts }) {
  const [a, b] = parts.map((id) => store.byId.get(id));
  if (!a || !b) return missing();
  const at = [...Array(Math.max((a.turns || []).length, (b.turns || []).length)).keys()]
    .find((index) => ((a.turns || [])[index] || {}).text !== ((b.turns || [])[index] || {}).text);
  const column = (it) => el('section', { 'aria-label': rowOf(it).label },
    el('h2', {}, mark(it), ' ', el('a', { href: place(it) }, rowOf(it).label), it.step === undefined ? '' : `, step ${it.step}`),
    whyBox(it), conversation(it, at === undefined ? -1 : at));
  return [el('div', { class: 'head' }, el('a', { class: 'button', href: `#/rows/${a.row}/${b.row}` }, '← Compare'),
    at !== undefined && el('span', { class: 'position' }, `different from turn ${at + 1} on`)),
  el('h1', {}, taskOf(a) === taskOf(b) ? title(a) : `${title(a)} and ${title(b)}`), el('div', { class: 'pair' }, column(a), column(b))];
}
