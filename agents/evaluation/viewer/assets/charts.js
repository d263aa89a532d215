// Charts, as SVG: each takes figures and a width, and gives a picture whose colours are classes of
// the style sheet (both themes), with a title a mark, and links where there is something to look at.

const SHAPES = [
  (x, y, r) => svg('circle', { cx: x, cy: y, r }),
  (x, y, r) => svg('rect', { x: x - r, y: y - r, width: 2 * r, height: 2 * r, rx: 1 }),
  (x, y, r) => svg('path', { d: `M${x} ${y - r * 1.3}L${x + r * 1.3} ${y + r}L${x - r * 1.3} ${y + r}Z` }),
  (x, y, r) => svg('path', { d: `M${x} ${y - r * 1.4}L${x + r * 1.4} ${y}L${x} ${y + r * 1.4}L${x - r * 1.4} ${y}Z` }),
];
function dot(look, x, y, told, r = 4.5) {
  const shape = SHAPES[look % SHAPES.length](x, y, r);
  shape.setAttribute('class', `dot c${look}`);
  if (told) shape.append(svg('title', {}, told));
  return shape;
}
/** A picture with links in it is a group of them; one without is an image. */
function picture(width, height, told, ...children) {
  const made = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, 'aria-label': told }, ...children);
  made.setAttribute('role', made.querySelector('a') ? 'group' : 'img');
  return made;
}
const text = (x, y, words, name = '', anchor = 'start') =>
  svg('text', { x, y, class: name, 'text-anchor': anchor }, words);
const line = (x1, y1, x2, y2, name) => svg('line', { x1, y1, x2, y2, class: name });
const link = (href, told, passed, ...children) => (href ? svg('a', { href, 'aria-label': told, tabindex: passed ? -1 : null }, ...children) : children);

/** Round steps of an axis, about `count` of them. */
function ticks(low, high, count = 4) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((it) => it * power).find((it) => it >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(+at.toPrecision(12));
  return found;
}

/** Shares with intervals: a band a group, in it a mark a row, each on a line of its own or, dense, all on one. */
function intervals(width, told, groups, dense) {
  const left = Math.min(150, width * 0.34), right = dense ? 14 : 54, gap = dense ? 12 : 9;
  const each = dense ? 4 : 17;
  const scale = (share) => left + share * (width - left - right);
  let y = 4;
  const marks = [];
  for (const { name, rates } of groups) {
    const middle = y + gap / 2 + (each * rates.length) / 2;
    marks.push(text(left - 10, middle + 4, clip(name, Math.floor(left / 7)), 'name', 'end'));
    rates.forEach(({ look, label, rate: [value, low, high, tasks], href }, index) => {
      const at = y + gap / 2 + each * (index + 0.5);
      if (value === null || value === undefined) return;
      const words = `${name === label ? '' : `${name}, `}${label}: ${percent(value)} (${percent(low)} to ${percent(high)}, ${many(tasks, 'task')})`;
      marks.push(link(href, words, dense, svg('g', { class: 'hit' },
        !dense && svg('rect', { x: left, y: at - each / 2, width: width - left, height: each, class: 'reach' }, svg('title', {}, words)),
        line(scale(low), at, scale(high), at, `whisker c${look}`),
        dot(look, scale(value), at, words, dense ? 4 : 4.5),
        !dense && text(width - right + 13, at + 4, `${(100 * value).toFixed(0)}%`, 'figure'))));
    });
    y += gap + each * rates.length;
    marks.push(line(dense ? 0 : left, y, width - right, y, 'faint'));
  }
  const grid = [0, 0.25, 0.5, 0.75, 1].map((it) => [
    line(scale(it), 0, scale(it), y, 'grid'), text(scale(it), y + 15, `${100 * it}`, 'tick', 'middle')]);
  return picture(width, y + 20, told, grid, marks);
}

/** Stacked counts: a bar a name, its parts in the order of `keys`. */
function stacks(width, told, bars, keys, looks) {
  const left = Math.min(150, width * 0.34), right = 46, each = 24;
  const most = Math.max(1, ...bars.map((bar) => bar.total));
  const marks = bars.map((bar, index) => {
    const y = index * each + 2;
    let x = left;
    return [text(left - 10, y + 14, clip(bar.name, Math.floor(left / 7)), 'name', 'end'),
      keys.filter((key) => bar.parts[key]).map((key) => {
        const wide = (bar.parts[key] / most) * (width - left - right), from = x;
        x += wide;
        const told = `${bar.name}: ${words(key)}, ${number(bar.parts[key])} of ${number(bar.total)}`;
        return link(bar.href && bar.href(key), told, false, svg('g', { class: 'hit' },
          svg('rect', { x: from, y, width: Math.max(wide - 1, 1), height: each - 6, rx: 2, class: `fill ${looks[key]}` }, svg('title', {}, told))));
      }),
      text(x + 7, y + 14, number(bar.total), 'figure')];
  });
  return picture(width, bars.length * each + 2, told, line(left - 0.5, 0, left - 0.5, bars.length * each, 'axis'), marks);
}

/** Lines with bands over steps: points are [x, y] or [x, y, low, high]. */
function lines(width, height, told, series, share) {
  const left = 40, right = 10, top = 8, bottom = 22;
  const all = series.flatMap((it) => it.points);
  const xs = all.map((it) => it[0]), ys = share ? [0, 1] : all.flatMap((it) => it.slice(1));
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (y0 === y1) { y0 -= Math.abs(y0) / 2 || 1; y1 += Math.abs(y1) / 2 || 1; }
  const X = (x) => left + ((x - x0) / (x1 - x0 || 1)) * (width - left - right);
  const Y = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  const path = (points) => points.map(([x, y], i) => `${i ? 'L' : 'M'}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join('');
  const axes = [
    ticks(y0, y1).map((it) => [line(left, Y(it), width - right, Y(it), 'grid'),
      text(left - 6, Y(it) + 4, share ? `${100 * it}` : number(it), 'tick', 'end')]),
    ticks(x0, x1, Math.max(2, width / 110)).map((it) => text(X(it), height - 5, number(it), 'tick', 'middle'))];
  const drawn = series.map(({ look, points, label, dashed }) => {
    const banded = points.filter((it) => it.length === 4);
    const band = [...banded.map(([x, , low]) => [x, low]), ...banded.map(([x, , , high]) => [x, high]).reverse()];
    return [
      banded.length > 1 && svg('path', { d: `${path(band)}Z`, class: `band c${look}` }),
      svg('path', { d: path(points), class: `line c${look}${dashed ? ' dashed' : ''}` }),
      points.length <= 40 && points.map(([x, y, low, high]) => dot(look, X(x), Y(y),
        `${label}, step ${number(x)}: ${share ? percent(y) : number(y)}${high === undefined ? '' : ` (${percent(low)} to ${percent(high)})`}`, 2.6))];
  });
  return picture(width, height, told, axes, drawn);
}

/** Success against what it took, with its interval. */
function scatter(width, height, told, points, unit) {
  const left = 40, right = 16, top = 10, bottom = 36;
  const most = Math.max(...points.map((it) => it.x)) * 1.08 || 1;
  const X = (x) => left + (x / most) * (width - left - right);
  const Y = (y) => height - bottom - y * (height - top - bottom);
  return picture(width, height, told,
    [0, 0.25, 0.5, 0.75, 1].map((it) => [line(left, Y(it), width - right, Y(it), 'grid'), text(left - 6, Y(it) + 4, `${100 * it}`, 'tick', 'end')]),
    ticks(0, most, Math.max(2, width / 100)).map((it) => text(X(it), height - bottom + 15, number(it), 'tick', 'middle')),
    text((left + width - right) / 2, height - 3, unit, 'tick', 'middle'),
    points.map((it) => {
      const words = `${it.label}: ${percent(it.rate[0])} at ${number(it.x)} ${unit}`;
      return svg('g', { class: 'hit' }, line(X(it.x), Y(it.rate[1]), X(it.x), Y(it.rate[2]), `whisker c${it.look}`), dot(it.look, X(it.x), Y(it.rate[0]), words, 5.5));
    }));
}

/** A bar to the left (below 0) or to the right of a middle line. */
function signedBar(value, most) {
  const wide = Math.min(1, Math.abs(value) / (most || 1)) * 30;
  return svg('svg', { viewBox: '0 0 64 12', width: 64, height: 12, 'aria-hidden': 'true' },
    line(32, 0, 32, 12, 'axis'),
    svg('rect', { x: value < 0 ? 32 - wide : 32, y: 2, width: wide, height: 8, rx: 1.5, class: value < 0 ? 'less-fill' : 'more-fill' }));
}
/** A value in 0..1 as a small meter. */
const meter = (value) => svg('svg', { viewBox: '0 0 44 12', width: 44, height: 12, 'aria-hidden': 'true' },
  svg('rect', { x: 0, y: 3, width: 44, height: 6, rx: 3, class: 'trough' }),
  svg('rect', { x: 0, y: 3, width: 44 * Math.max(0, Math.min(1, value)), height: 6, rx: 3, class: 'more-fill' }));
