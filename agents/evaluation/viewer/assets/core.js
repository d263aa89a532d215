'use strict';
// Elements are made here and nowhere else: text is only ever a text node, so no words of a model
// can become part of the page.

const $ = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((it) => it !== null && it !== undefined && it !== false));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS($('mark').namespaceURI, tag), attributes, children);

const percent = (share) => (share === null || share === undefined ? '–' : `${(100 * share).toFixed(1)}%`);
const number = (value, digits = 3) => {
  if (value === null || value === undefined) return '–';
  if (Math.abs(value) >= 1e9) return value > 0 ? '∞' : '−∞';
  if (Number.isInteger(value)) return value.toLocaleString('en');
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString('en') : String(+value.toPrecision(digits));
};
const signed = (value) => (value > 0 ? '+' : value < 0 ? '−' : '') + number(Math.abs(value));
const many = (count, word) => `${number(count)} ${word}${count === 1 ? '' : 's'}`;
const clip = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const words = (name) => name.replace(/_/g, ' ');
const short = (env) => env.replace(/^.*\//, '').replace(/-v\d+$/, '');

const store = { data: null, byId: new Map(), byTask: new Map(), shown: [], hidden: new Set() };

function take(data) {
  store.data = data;
  store.byId = new Map(data.episodes.map((it) => [it.id, it]));
  store.byTask = new Map();
  for (const it of data.episodes) {
    const key = taskOf(it);
    if (!store.byTask.has(key)) store.byTask.set(key, []);
    store.byTask.get(key).push(it);
  }
  data.rows.forEach((row, index) => { row.index = index; row.look = look(row, index); });
  $('title').textContent = data.title;
}
const taskOf = (it) => `${it.env} ${it.task}`;
const rowOf = (it) => store.data.rows[it.row];
const outcome = (it) => (it.broken ? 'broken' : it.success ? 'solved' : 'failed');
const place = (it) => `#/episode/${it.id}`;
const title = (it) => `${short(it.env)} ${it.task}${it.attempt ? `, attempt ${it.attempt + 1}` : ''}`;

// Colours by the names of rows that every run has; the others in turn. A shape goes with each.
const KNOWN = { 'no-op': 6, oracle: 7, 'student before': 1, 'student after': 0, teacher: 2, student: 0 };
function look(row, index) {
  const known = store.data.rows.every((it) => it.label in KNOWN || it.training) ? KNOWN[row.label] : undefined;
  return row.training ? 5 : known === undefined ? index % 8 : known;
}

function mark(it) {
  const how = outcome(it);
  const sign = { solved: '✓', failed: '✗', broken: '!' }[how];
  return el('span', { class: `mark-${how}`, role: 'img', 'aria-label': how, title: how }, sign);
}

// Addresses: "#/page/part/part?name=value". What is shown follows from the address alone.
function address() {
  const [path, query] = location.hash.replace(/^#\/?/, '').split('?');
  const parts = path.split('/').filter(Boolean).map(decodeURIComponent);
  return { page: parts[0] || 'overview', parts: parts.slice(1), query: new URLSearchParams(query || '') };
}
function listAddress(query) {
  const text = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== '')).toString();
  return `#/episodes${text ? `?${text}` : ''}`;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem('journeyman-theme', theme); } catch { /* a file may keep nothing */ }
}
function toggleTheme() {
  const root = document.documentElement.dataset;
  const dark = root.theme ? root.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  setTheme(dark ? 'light' : 'dark');
}
try {
  const kept = localStorage.getItem('journeyman-theme');
  if (kept === 'dark' || kept === 'light') document.documentElement.dataset.theme = kept;
} catch { /* likewise */ }
