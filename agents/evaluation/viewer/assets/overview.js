// The first page: every row's figures in one table, then pictures of them.

const STATUS_LOOKS = { ok: 'f0', tool_error: 'f5', timeout: 'f2', invalid_arguments: 'f1', unknown_tool: 'f6', missing_name: 'f7', invalid_json: 'f3', unclosed: 'f4' };
const UNITS = {
  share: percent, score: (it) => number(it, 2), count: (it) => number(it), tokens: (it) => number(it),
  seconds: (it) => `${number(it)} s`, money: (it) => number(it),
};

/** A picture in a frame, redrawn when its room changes. */
function panel(heading, draw, options = {}) {
  const room = el('div', { class: 'picture' });
  const box = el('section', { class: `panel ${options.wide ? 'wide' : ''}`, 'aria-label': heading },
    el('h2', {}, heading), options.note && el('p', { class: 'note' }, options.note), options.head, room);
  box.draw = () => { room.replaceChildren(draw(Math.max(240, room.clientWidth))); };
  return box;
}
const legend = (looks) => el('ul', { class: 'legend' }, Object.entries(looks).map(([name, look]) =>
  el('li', {}, svg('svg', { viewBox: '0 0 10 10', width: 10, height: 10, 'aria-hidden': 'true' },
    svg('rect', { x: 0, y: 0, width: 10, height: 10, rx: 2, class: `fill ${look}` })), words(name))));

function overviewPage() {
  const { rows, curves, episodes } = store.data;
  if (!rows.length) return [el('h1', {}, 'Nothing was played yet'), el('p', {}, 'The page fills as the run writes.')];
  const visible = () => rows.filter((row) => !store.hidden.has(row.label));
  // Scripts fail (or not) by design: they would only make the others' bars short.
  const own = rows.filter((row) => !row.scripted), failing = own.length ? own : rows;
  const panels = [panel('Success by policy', (width) => intervals(width, 'Success of each policy in percent, with 95% intervals',
    visible().map((row) => ({ name: row.label, rates: [{ look: row.look, label: row.label, rate: row.success, href: listAddress({ row: row.index }) }] }))),
  { note: 'percent of episodes, 95% intervals over tasks' })];
  for (const [key, heading] of [['kind', 'Success by kind of task'], ['environment', 'Success by environment'], ['level', 'Success by level']]) {
    const names = [...new Set(rows.flatMap((row) => Object.keys(row[key])))].sort();
    if (names.length < 2) continue;
    const ease = (name) => failing.reduce((sum, row) => sum + (row[key][name] ? row[key][name][0] : 0), 0);
    if (key !== 'level') names.sort((a, b) => ease(a) - ease(b)); // the hardest first
    panels.push(panel(heading, (width) => intervals(width, `${heading} and policy, with 95% intervals`, names.map((name) => ({
      name: key === 'environment' ? short(name) : name,
      rates: visible().filter((row) => row[key][name]).map((row) => ({
        look: row.look, label: row.label, rate: row[key][name],
        href: listAddress({ row: row.index, [key === 'environment' ? 'env' : key]: name }) })),
    })), names.length > 5)));
  }
  const failures = [...new Set(failing.flatMap((row) => Object.keys(row.failures)))];
  if (failures.length) {
    const looks = Object.fromEntries(failures.map((name, index) => [name, `f${index % 10}`]));
    panels.push(panel('Why episodes failed', (width) => stacks(width, 'Failed episodes of each policy by cause',
      visible().filter((row) => failing.includes(row) && Object.keys(row.failures).length).map((row) => ({
        name: row.label, parts: row.failures, total: Object.values(row.failures).reduce((a, b) => a + b, 0),
        href: (failure) => listAddress({ row: row.index, failure }) })), failures, looks), { head: legend(looks) }));
  }
  const called = rows.filter((row) => Object.keys(row.tools).length);
  if (called.length) panels.push(toolPanel(called));
  panels.push(...costPanels(rows, visible), ...curvePanels(curves));
  const solved = episodes.filter((it) => it.success).length;
  return [
    el('h1', {}, store.data.title),
    el('p', { class: 'lead' }, `${many(rows.length, 'policy').replace('policys', 'policies')}, ${many(episodes.length, 'episode')}, ${number(solved)} solved`),
    rowTable(rows), el('div', { class: 'panels' }, panels),
  ];
}

function rowTable(rows) {
  const told = store.data.measures.filter((it) => rows.some((row) => (row.measures[it.name] || [null])[0] !== null));
  const more = [['tokens', 'tokens/task'], ['cost', 'cost/episode']].filter(([key, heading]) =>
    rows.some((row) => row[key] !== null) && !told.some((it) => it.title === heading));
  return el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Figures of each policy' }, el('table', { class: 'figures' },
    el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'policy'), el('th', { scope: 'col' }, 'tasks'),
      told.map((it) => el('th', { scope: 'col', title: it.about }, it.title)), more.map(([, heading]) => el('th', { scope: 'col' }, heading)))),
    el('tbody', {}, rows.map((row) => el('tr', {},
      el('th', { scope: 'row' }, el('button', {
        class: 'chip', type: 'button', 'aria-pressed': String(!store.hidden.has(row.label)), title: 'show in the pictures, or not',
        onclick: (event) => {
          store.hidden.has(row.label) ? store.hidden.delete(row.label) : store.hidden.add(row.label);
          event.currentTarget.setAttribute('aria-pressed', String(!store.hidden.has(row.label)));
          drawPanels();
        } }, svg('svg', { viewBox: '0 0 14 14', width: 14, height: 14, 'aria-hidden': 'true' }, dot(row.look, 7, 7, '', 4.5)), row.label)),
      el('td', {}, number(row.tasks), row.infra ? el('span', { class: 'warn', title: 'episodes that infrastructure broke' }, ` ${row.infra} broken`) : null),
      told.map((it) => {
        const [value, low, high] = row.measures[it.name] || [null];
        const unit = UNITS[it.unit] || number;
        return el('td', { class: it.name === 'success' ? 'strong' : '', title: low === null || low === undefined ? null : `95% interval ${unit(low)} to ${unit(high)}` },
          unit(value), it.name === 'success' && value !== null && low !== null ? el('small', {}, ` ${(100 * low).toFixed(0)}–${(100 * high).toFixed(0)}`) : null);
      }),
      more.map(([key]) => el('td', {}, number(row[key]))))))));
}

function toolPanel(called) {
  let chosen = called.find((row) => !row.scripted && !row.training) || called[0];
  const statuses = [...new Set(called.flatMap((row) => Object.values(row.tools).flatMap(Object.keys)))]
    .sort((a, b) => Object.keys(STATUS_LOOKS).indexOf(a) - Object.keys(STATUS_LOOKS).indexOf(b));
  const looks = Object.fromEntries(statuses.map((name) => [name, STATUS_LOOKS[name] || 'f8']));
  const choice = el('select', { 'aria-label': 'Policy whose calls are shown', onchange: (event) => { chosen = called[event.target.value]; box.draw(); } },
    called.map((row, index) => el('option', { value: index, selected: row === chosen }, row.label)));
  const box = panel('Calls by tool and status', (width) => stacks(width, `Calls of ${chosen.label} by tool and status`,
    Object.entries(chosen.tools).map(([name, parts]) => ({ name, parts, total: Object.values(parts).reduce((a, b) => a + b, 0) }))
      .sort((a, b) => b.total - a.total), statuses, looks), { head: el('div', { class: 'split' }, legend(looks), choice) });
  return box;
}

function costPanels(rows, visible) {
  return [['cost', 'Success against cost', 'money an episode'], ['tokens', 'Success against tokens', 'tokens a task']]
    .filter(([key]) => rows.filter((row) => row[key] > 0).length > 1).slice(0, 1)
    .map(([key, heading, unit]) => panel(heading, (width) => scatter(width, 230, `${heading}, a mark a policy`,
      visible().filter((row) => row[key] !== null && row.success[0] !== null).map((row) => ({ x: row[key], rate: row.success, look: row.look, label: row.label })), unit),
    { note: 'marks as in the table; whiskers are 95% intervals' }));
}

function curvePanels(curves) {
  if (!curves.length) return [];
  const names = [...new Set(curves.flatMap((it) => Object.keys(it.series)))];
  const drawn = (keys, heading, share, wide) => {
    const series = curves.flatMap((run, index) => keys.filter((key) => run.series[key]).map((key, place) => ({
      look: curves.length > 1 ? index % 8 : place ? 1 : 0, label: curves.length > 1 ? `${run.run}: ${key}` : key, dashed: place > 0, points: run.series[key] })));
    return series.length ? [panel(heading, (width) => lines(width, wide ? 230 : 150, `${heading} over training steps`, series, share),
      { wide, head: el('ul', { class: 'legend' }, series.map((it) => el('li', {},
        svg('svg', { viewBox: '0 0 22 10', width: 22, height: 10, 'aria-hidden': 'true' }, svg('path', { d: 'M0 5H22', class: `line c${it.look}${it.dashed ? ' dashed' : ''}` })), it.label))) })] : [];
  };
  const first = drawn(['eval/success', 'rollout/success'], 'Learning curve: success', true, true);
  const others = names.filter((it) => !['eval/success', 'rollout/success', 'eval/tasks'].includes(it));
  const start = others.includes('loss') ? 'loss' : others[0];
  if (!start) return first;
  let key = start, box = null;
  const choice = el('select', { 'aria-label': 'What training logged', onchange: (event) => {
    key = event.target.value;
    const [next] = make();
    box.replaceWith(next); box = next; box.draw(); next.querySelector('select').focus();
  } }, others.map((name) => el('option', { value: name, selected: name === key }, name)));
  const make = () => { const made = drawn([key], 'What training logged', false, true); made[0].querySelector('h2').after(choice); return made; };
  [box] = make();
  return [...first, box];
}

const drawPanels = () => document.querySelectorAll('.panel').forEach((it) => it.draw && it.draw());
