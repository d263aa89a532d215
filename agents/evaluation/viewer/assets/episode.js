// One episode: the conversation, what was judged of it, why it failed, and its search tree.

const LEVELS = [0.1, 0.5, 1, 2];
const SHADES = { ratio: 'teacher’s log-ratio', advantage: 'advantage', weight: 'weight' };
let shadeBy = 'ratio';

function shadeOf(value, by, most) {
  const size = Math.abs(value);
  const level = by === 'ratio' ? LEVELS.filter((least) => size >= least).length
    : !most || !size ? 0 : Math.ceil((size / most) * 4);
  return level ? `${value < 0 ? 'less' : 'more'}${level}` : '';
}

function shaded(turn, by, most) {
  const { widths } = turn.shades, values = turn.shades[by] || [];
  const told = (index) => Object.keys(SHADES).filter((key) => turn.shades[key])
    .map((key) => `${SHADES[key]} ${signed(turn.shades[key][index])}`).join(', ');
  let from = 0;
  const pieces = widths.map((width, index) => {
    const piece = turn.text.slice(from, from += width);
    return piece && el('span', { class: shadeOf(values[index] || 0, by, most), title: told(index) || null }, piece);
  });
  const last = widths.length;
  return [pieces, turn.text.slice(from), ' ', el('span', { class: `end ${shadeOf(values[last] || 0, by, most)}`, title: told(last) || null }, 'end')];
}

const badge = (status) => el('span', { class: `badge ${status === 'ok' ? 'good' : 'bad'}` }, words(status));
function callBox(call) {
  return el('div', { class: `call ${call.status === 'ok' ? '' : 'bad'}` },
    el('div', { class: 'call-line' }, badge(call.status), call.name || call.arguments.length ? el('code', {}, el('b', {}, call.name || '(no name)'), '(',
      call.arguments.map(([name, value], index) => [index ? ', ' : '', el('span', { class: 'argument' }, `${name}: `), value]), ')') : el('code', {}, 'a call that cannot be read'),
    call.seconds >= 0.1 && el('small', {}, `${number(call.seconds)} s`)),
    el('pre', { class: 'result' }, call.result));
}
const bubble = (role, said, name, extra = '') => el('div', { class: `message ${role} ${extra}` },
  el('b', {}, name ? `${role} ${name}` : role), el('pre', {}, said));

function opening(it) {
  return it.opening.map(([role, at, name]) => {
    const said = store.data.texts[at];
    if (role !== 'system') return bubble(role, said, name);
    return el('details', { class: 'message system' }, el('summary', {}, 'system', el('small', {}, ` ${many(said.length, 'character')}`)), el('pre', {}, said));
  });
}

function turnBox(it, index, by, most, other) {
  const turn = it.turns[index], score = turn.score, decides = it.decides === index;
  const calls = turn.calls || [];
  const head = el('div', { class: 'turn-head' }, el('b', {}, `turn ${index + 1}`),
    decides && el('span', { class: 'badge decides', title: 'The turn over which the search’s value V fell most (rose most, of a solved episode)' }, 'deciding step'),
    (it.lost || []).map((found) => found.turn === index ? el('span', { class: 'badge decides', title: found.words }, 'lost here')
      : found.fell === index && el('span', { class: 'badge decides', title: found.words }, 'fell most')),
    other && el('span', { class: 'badge differs' }, 'first difference'),
    turn.cut && el('span', { class: 'badge bad' }, 'hit its token limit'),
    turn.usage && el('small', {}, [turn.usage[1] !== null && many(turn.usage[1], 'token'), turn.usage[2] !== null && `cost ${number(turn.usage[2])}`].filter(Boolean).join(', ')),
    score && el('small', { class: 'told' },
      `weight ${number(score.weight)} · advantage ${signed(score.advantage)}`,
      score.grade !== undefined && ` · grade ${number(score.grade)}`,
      score.value && ` · V ${number(score.value.before)} → ${number(score.value.after)} (${signed(score.value.gain)} ± ${number(score.value.error)})`));
  const said = turn.shades ? el('pre', { class: 'said shaded' }, shaded(turn, by, most))
    : turn.said === undefined ? el('pre', { class: 'said' }, turn.text)
    : [turn.said && el('pre', { class: 'said' }, turn.said)];
  return el('section', { class: `turn ${decides ? 'decides' : ''}`, id: `turn-${index + 1}`, 'aria-label': `turn ${index + 1}` }, head,
    (turn.chances || []).map((told) => el('p', { class: 'note' }, told)), said, calls.map(callBox),
    !turn.shades && turn.said !== undefined && el('details', { class: 'raw' }, el('summary', {}, 'as written'), el('pre', {}, turn.text)),
    score && score.parts && el('details', { class: 'raw' }, el('summary', {}, 'scores by part'), partTable(score.parts)),
    (turn.more || []).map(([role, words, name]) => bubble(role, words, name)));
}

const partTable = (parts) => el('table', { class: 'figures small' },
  el('thead', {}, el('tr', {}, ['part', 'log-ratio', 'distance', 'tokens'].map((it) => el('th', { scope: 'col' }, it)))),
  el('tbody', {}, parts.map(([name, ratio, distance, tokens]) => el('tr', {}, el('th', { scope: 'row' }, name),
    el('td', {}, signed(ratio)), el('td', {}, number(distance)), el('td', {}, tokens)))));

function conversation(it, differs = -1) {
  const turns = it.turns || [];
  const by = turns.some((turn) => turn.shades && turn.shades[shadeBy]) ? shadeBy
    : Object.keys(SHADES).find((key) => turns.some((turn) => turn.shades && turn.shades[key])) || 'ratio';
  const most = Math.max(0, ...turns.flatMap((turn) => (turn.shades && turn.shades[by] || []).map(Math.abs)));
  return el('div', { class: 'conversation' }, opening(it), turns.map((turn, index) => turnBox(it, index, by, most, index === differs)),
    it.error && el('p', { class: 'problem' }, it.error),
    el('p', { class: `verdict ${outcome(it)}` }, mark(it), ` ${it.broken ? 'broken by infrastructure' : it.success ? 'solved' : `not solved: ${words(it.stop)}`} · reward ${number(it.reward)}`));
}

function whyBox(it) {
  const found = it.shortfall;
  if (it.success || (!it.failure && !found)) return null;
  const wrong = found ? found.answers.filter((answer) => !answer[2]) : [];
  const cell = (value) => el('td', {}, value === null ? el('i', {}, 'absent') : el('code', {}, value));
  return el('section', { class: 'card why' }, el('h2', {}, 'Why it failed'), it.failure && el('p', { class: 'cause' }, it.failure),
    (it.lost || []).map((found) => el('p', {}, found.words)),
    found && found.state.length > 0 && el('table', { class: 'difference' }, el('caption', {}, 'state'),
      el('thead', {}, el('tr', {}, ['', 'reached', 'wanted'].map((name) => el(name ? 'th' : 'td', name ? { scope: 'col' } : {}, name)))),
      el('tbody', {}, found.state.map(([path, reached, wanted]) => el('tr', {}, el('th', { scope: 'row' }, el('code', {}, path)), cell(reached), cell(wanted))))),
    wrong.length > 0 && el('table', { class: 'difference' }, el('caption', {}, 'answer'),
      el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'given'), el('th', { scope: 'col' }, 'wanted'))),
      el('tbody', {}, wrong.map(([given, wanted]) => el('tr', {}, cell(given), cell(wanted))))));
}

function stepsBox(it) {
  const scores = (it.turns || []).map((turn) => turn.score);
  if (!scores.some(Boolean)) return null;
  const most = Math.max(...scores.map((score) => Math.abs(score ? score.advantage : 0)));
  const valued = scores.some((score) => score && score.value), moved = most > 0;
  return el('section', { class: 'card' }, el('h2', {}, 'Steps'), el('table', { class: 'steps' },
    el('thead', {}, el('tr', {}, ['turn', moved && 'advantage', valued && 'V after', 'weight'].filter(Boolean).map((name) => el('th', { scope: 'col' }, name)))),
    el('tbody', {}, scores.map((score, index) => score && el('tr', { class: it.decides === index ? 'decides' : '' },
      el('th', { scope: 'row' }, el('a', { href: `${place(it)}/${index + 1}` }, `${index + 1} ${(it.turns[index].calls || []).map((call) => call.name || 'malformed').join(', ') || 'answer'}`)),
      moved && el('td', {}, signedBar(score.advantage, most), signed(+score.advantage.toFixed(2))),
      valued && el('td', {}, score.value ? [meter(score.value.after), number(score.value.after, 2)] : '–'),
      el('td', {}, number(score.weight, 2)))))));
}

function othersBox(it) {
  const others = store.byTask.get(taskOf(it)).filter((other) => other !== it);
  if (!others.length) return null;
  return el('section', { class: 'card' }, el('h2', {}, 'The same task'), el('ul', { class: 'plain-list' }, others.slice(0, 12).map((other) => el('li', {},
    mark(other), ' ', el('a', { href: place(other) }, `${rowOf(other).label}${other.attempt ? `, attempt ${other.attempt + 1}` : ''}${other.step === undefined ? '' : `, step ${other.step}`}`),
    ' ', el('a', { class: 'aside', href: `#/side/${it.id}/${other.id}` }, 'side by side')))),
  others.length > 12 && el('a', { href: listAddress({ env: it.env, task: it.task }) }, `all ${others.length + 1}`));
}

function facts(it) {
  const told = { kind: it.kind, level: it.level, environment: it.env, stop: words(it.stop), tokens: number(it.tokens), calls: it.calls,
    score: it.score === undefined ? null : number(it.score), cost: it.cost === undefined ? null : number(it.cost),
    'training step': it.step, seed: it.seed };
  return el('section', { class: 'card' }, el('h2', {}, 'Facts'), el('dl', {}, Object.entries(told).filter(([, value]) => value !== null && value !== undefined && value !== '')
    .map(([name, value]) => [el('dt', {}, name), el('dd', {}, value)])));
}

function episodePage({ parts: [id, turn] }) {
  const it = store.byId.get(id);
  if (!it) return missing();
  if (turn === 'tree' && it.tree) return treePage(it);
  store.last = id;
  if (!store.shown.includes(it)) store.shown = store.data.episodes;
  const at = store.shown.indexOf(it), step = (by) => store.shown[at + by];
  const jump = (other, label, words) => el('a', { class: 'button', href: other ? place(other) : null, 'aria-label': words, 'aria-disabled': other ? null : 'true', role: other ? null : 'link' }, label);
  const looks = (it.turns || []).flatMap((one) => Object.keys(one.shades || {}));
  const known = Object.keys(SHADES).filter((key) => looks.includes(key));
  const talk = el('div', { class: 'talk' }, conversation(it));
  const shades = known.length > 0 && el('div', { class: 'shading' },
    el('label', {}, 'Tokens shaded by ', el('select', { onchange: (event) => { shadeBy = event.target.value; talk.replaceChildren(conversation(it)); } },
      known.map((key) => el('option', { value: key, selected: key === shadeBy }, SHADES[key])))),
    el('span', { class: 'scale', 'aria-hidden': 'true' }, 'less ', [4, 3, 2, 1].map((n) => el('span', { class: `less${n}` }, ' ')), [1, 2, 3, 4].map((n) => el('span', { class: `more${n}` }, ' ')), ' more'));
  const branches = it.tree && (it.tree.children || []).length > 0;
  return [
    el('div', { class: 'head' }, el('a', { class: 'button', href: store.list || '#/episodes' }, '← Episodes'),
      el('span', { class: 'position' }, `${number(at + 1)} of ${number(store.shown.length)}`), jump(step(-1), '↑ k', 'previous episode'), jump(step(1), '↓ j', 'next episode')),
    el('h1', {}, mark(it), ` ${title(it)}`),
    el('p', { class: 'lead' }, svg('svg', { viewBox: '0 0 14 14', width: 14, height: 14, 'aria-hidden': 'true' }, dot(rowOf(it).look, 7, 7, '', 4.5)), ` ${rowOf(it).label}${it.kind ? ` · ${it.kind}` : ''}`),
    el('div', { class: 'two' },
      el('div', { class: 'side' }, el('div', { class: 'first' }, whyBox(it),
        it.tree && el('section', { class: 'card' }, el('h2', {}, 'Search tree'), el('p', {}, el('a', { class: 'button primary', href: `${place(it)}/tree` }, branches ? `Open the tree (${many(size(it.tree), 'node')})` : 'Open the tree')))),
        el('div', { class: 'rest' }, stepsBox(it), it.gold && el('section', { class: 'card' }, el('h2', {}, 'One way to solve it'), el('ol', { class: 'gold' }, it.gold.map((line) => el('li', {}, el('code', {}, line))))),
        othersBox(it), facts(it))),
      el('div', {}, shades, talk)),
  ];
}
const missing = () => [el('h1', {}, 'No such episode'), el('p', {}, el('a', { href: '#/episodes' }, 'All episodes'))];
const size = (node) => 1 + (node.children || []).reduce((sum, child) => sum + size(child), 0);

// The tree, by the pattern of WAI-ARIA: one node has the focus, arrows walk and open.
function treePage(it) {
  const detail = el('section', { class: 'card node', 'aria-live': 'polite', 'aria-label': 'The chosen node' });
  const choose = (item) => {
    tree.querySelectorAll('[role=treeitem]').forEach((one) => { one.tabIndex = -1; one.setAttribute('aria-selected', 'false'); });
    item.tabIndex = 0;
    item.setAttribute('aria-selected', 'true');
    detail.replaceChildren(...nodeDetail(item.node, it));
  };
  const toggle = (item, open) => { if (item.hasAttribute('aria-expanded')) { grown(item); item.setAttribute('aria-expanded', String(open)); } };
  const grown = (item) => { // children are made when they are first seen
    const group = item.querySelector(':scope > ul');
    if (group && !group.children.length) group.append(...item.node.children.map((child) => make(child, item.level + 1)));
  };
  const make = (node, level) => {
    const below = (node.children || []).length > 0, open = below && (node.own || level === 1);
    const told = node.text ? clip(node.text.replace(/<\/?tool_call>/g, '').trim().replace(/\s+/g, ' '), 160) : 'the task';
    const item = el('li', { role: 'treeitem', tabindex: -1, 'aria-level': level, 'aria-selected': 'false', 'aria-expanded': below ? String(open) : null,
      'aria-label': `${told}; value ${node.value === null ? 'unknown' : number(node.value, 2)}, ${many(node.visits, 'visit')}`, class: node.own ? 'own' : '' },
    el('div', { class: 'node-line', onclick: (event) => { event.stopPropagation(); choose(item); item.focus(); if (event.target.closest('.twist')) toggle(item, item.getAttribute('aria-expanded') !== 'true'); } },
      el('span', { class: 'twist', 'aria-hidden': 'true' }, below ? '▸' : '·'),
      node.value === null ? el('span', { class: 'unknown' }, '?') : meter(node.value),
      el('span', { class: 'value' }, node.value === null ? '' : number(node.value, 2)),
      el('span', { class: 'visits' }, `×${number(node.visits)}`),
      node.stop && el('span', { class: node.success ? 'mark-solved' : 'mark-failed' }, node.success ? '✓' : '✗'),
      node.by === 'teacher' && el('span', { class: 'badge' }, 'teacher'),
      el('code', {}, told)),
    below && el('ul', { role: 'group' }));
    item.node = node; item.level = level;
    if (open) grown(item);
    return item;
  };
  const visible = () => [...tree.querySelectorAll('[role=treeitem]')].filter((one) => {
    for (let up = one.parentElement.closest('[role=treeitem]'); up; up = up.parentElement.closest('[role=treeitem]')) if (up.getAttribute('aria-expanded') !== 'true') return false;
    return true;
  });
  const tree = el('ul', { role: 'tree', class: 'tree', 'aria-label': 'Search tree', onkeydown: (event) => {
    const item = event.target.closest('[role=treeitem]'), all = visible(), at = all.indexOf(item);
    const open = item.getAttribute('aria-expanded');
    const to = { ArrowDown: all[at + 1], j: all[at + 1], ArrowUp: all[at - 1], k: all[at - 1], Home: all[0], End: all[all.length - 1],
      ArrowRight: open === 'true' ? all[at + 1] : null, ArrowLeft: open === 'true' ? null : item.parentElement.closest('[role=treeitem]') }[event.key];
    if (event.key === 'ArrowRight' && open === 'false') toggle(item, true);
    else if (event.key === 'ArrowLeft' && open === 'true') toggle(item, false);
    else if (event.key === 'Enter' || event.key === ' ') toggle(item, open !== 'true');
    else if (to) { choose(to); to.focus(); to.querySelector('.node-line').scrollIntoView({ block: 'nearest' }); }
    else return;
    event.preventDefault(); event.stopPropagation();
  } });
  tree.append(make(it.tree, 1));
  choose(tree.firstElementChild);
  return [el('div', { class: 'head' }, el('a', { class: 'button', href: place(it) }, '← Episode'), el('span', { class: 'position' }, many(size(it.tree), 'node'))),
    el('h1', {}, `Search tree of ${title(it)}`),
    el('p', { class: 'lead' }, 'Bars are values V; × how often the search came there. The way of this episode is marked. Arrows walk and open.'),
    el('div', { class: 'two flipped' }, el('div', { class: 'side' }, detail), tree)];
}

function nodeDetail(node, it) {
  const told = { turn: node.turn, value: node.value === null ? 'unknown' : `${number(node.value)} ± ${number(node.error)}`, visits: number(node.visits),
    success: node.success === null ? '–' : percent(node.success), calls: (node.calls || []).map(words).join(', '), end: node.stop ? words(node.stop) : '', by: node.by || 'student' };
  return [el('h2', {}, node.turn ? `After turn ${node.turn}` : 'Where the task begins'),
    el('dl', {}, Object.entries(told).filter(([, value]) => value !== '').map(([name, value]) => [el('dt', {}, name), el('dd', {}, value)])),
    node.text && el('pre', { class: 'said' }, node.text), node.own && node.turn > 0 && el('p', {}, el('a', { href: `${place(it)}/${node.turn}` }, 'in the conversation'))].filter(Boolean);
}
