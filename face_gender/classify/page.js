"use strict";

const PAGE = 60;
const OUT = -1; // the decision to leave a picture out
const SIGNS = ["■", "●", "▲", "◆"];
const SORTS = ["doubtful", "sure", "name"];
const LONE = "[\\ud800-\\udbff](?![\\udc00-\\udfff])|(?<![\\ud800-\\udbff])[\\udc00-\\udfff]";
// Signs that would not be seen, or would turn the text around them.
const UNSEEN = new RegExp(
  `[\\u0000-\\u001f\\u007f-\\u009f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff]|${LONE}`, "g");

const at = (id) => document.getElementById(id);
// Predictions by their number, from the least confident on: names[picture[i]], label[i],
// confidence[i], thumb[i]; the first `uncertain` of them are below the threshold.
const data = JSON.parse(at("data").textContent);
const entries = data.label.map((_, i) => i);
const byPicture = data.names.map(() => []);
entries.forEach((i) => byPicture[data.picture[i]].push(i));
const LOWEST = Math.floor(100 / Math.max(1, data.classes.length));
const KEY = `face_gender.labels.${data.hash}`;
const TABS = [
  ["all", "All", ""],
  ...data.classes.map((name, c) => [String(c), `${sign(c)} ${name}`,
    `Labelled ${name}, by the net or by you.`]),
  ["uncertain", "? uncertain", data.threshold > 0
    ? `The net's confidence is below the threshold of ${percent(data.threshold)}. Label them yourself.`
    : "None: process.py was run without --threshold, so every picture got a label."],
  ["yours", "✎ yours", "Labelled by you. Kept in this browser: export them to use them."],
  ["skipped", "⚠ skipped", "Files without a prediction, and why."],
];
const state = { tab: "all", name: "", from: LOWEST, to: 100, sort: "doubtful", page: 1 };
let decided = new Map();
let chosen = []; // the numbers of what passes the filters, in order
let cursor = 0; // place in `chosen`
let whole = false;
let kept = true; // whether the browser keeps the decisions

const make = (tag, className, ...content) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
};

function button(text, act, className = "") {
  const element = make("button", className, text);
  element.type = "button";
  element.addEventListener("click", act);
  return element;
}

function sign(label) {
  return SIGNS[label % SIGNS.length];
}

function percent(value) {
  const tenths = Math.floor(value * 1000 + 1e-6) / 10;
  return `${tenths.toFixed(tenths > 99 && tenths < 100 ? 1 : 0)} %`;
}

const number = (value) => value.toLocaleString("en");
// Names from macOS are decomposed, typed text is composed.
const folded = (text) => text.normalize("NFC").toLowerCase();

function readable(text) {
  return text.replace(UNSEEN, (one) => {
    const code = one.charCodeAt(0);
    // Python carries a byte that is not UTF-8 as this surrogate.
    if (code >= 0xdc80 && code <= 0xdcff) return `\\x${(code - 0xdc00).toString(16)}`;
    return `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

// ---- Which pictures are shown

const labelOf = (i) => decided.get(i) ?? (i < data.uncertain ? null : data.label[i]);

function tabsOf(i) {
  const label = labelOf(i);
  const tabs = ["all", label === null ? "uncertain" : String(label)];
  return decided.has(i) ? [...tabs, "yours"] : tabs;
}

let searched = null;
function matches() {
  if (!state.name) return () => true;
  searched ??= [...data.names, ...data.skipped.map(([name]) => name)].map((name) => {
    const seen = readable(name);
    return folded(seen === name ? name : `${seen}\n${name}`);
  });
  const needle = folded(state.name);
  const hits = searched.map((text) => text.includes(needle));
  return (place) => hits[place];
}

function counted() {
  const counts = Object.fromEntries(TABS.map(([tab]) => [tab, 0]));
  const own = [];
  const isHit = matches();
  for (const i of entries) {
    const sure = Math.floor(data.confidence[i] * 100 + 1e-6);
    if (sure < state.from || sure > state.to || !isHit(data.picture[i])) continue;
    for (const tab of tabsOf(i)) {
      if (tab in counts) counts[tab] += 1;
      if (tab === state.tab) own.push(i);
    }
  }
  const skipped = data.skipped.map((_, i) => i).filter((i) => isHit(data.names.length + i));
  counts.skipped = skipped.length;
  return { counts, own: state.tab === "skipped" ? skipped : own };
}

function showCounts(counts) {
  TABS.forEach(([tab], i) => {
    const element = at("tabs").children[i];
    element.lastChild.textContent = number(counts[tab]);
    if (tab === state.tab) element.setAttribute("aria-current", "true");
    else element.removeAttribute("aria-current");
  });
}

function refresh() {
  const { counts, own } = counted();
  chosen = own;
  if (state.tab !== "skipped") {
    if (state.sort === "sure") chosen.reverse();
    if (state.sort === "name") {
      const name = (i) => data.names[data.picture[i]];
      chosen.sort((a, b) => (name(a) < name(b) ? -1 : name(a) > name(b) ? 1 : a - b));
    }
  }
  showCounts(counts);
  const thing = byPicture.some((faces) => faces.length > 1) ? "face" : "picture";
  const unit = chosen.length === 1 ? thing : `${thing}s`;
  const predicted = chosen.length && !["skipped", "yours"].includes(state.tab);
  at("help").textContent = [TABS.find(([tab]) => tab === state.tab)[2], predicted
    ? `${number(chosen.length)} ${unit}. Wrong? Press the right label under the picture.` : ""].join(" ");
  for (const id of ["name", "from", "to", "sort"]) at(id).value = state[id];
  at("from-shown").textContent = `${state.from} %`;
  at("to-shown").textContent = `${state.to} %`;
  for (const each of document.querySelectorAll(".sure")) each.hidden = state.tab === "skipped";
  showPage();
}

const pages = () => Math.max(1, Math.ceil(chosen.length / PAGE));

function showPage() {
  state.page = Math.min(Math.max(1, state.page), pages());
  const start = (state.page - 1) * PAGE;
  const own = chosen.slice(start, start + PAGE);
  if (cursor < start || cursor >= start + own.length) cursor = start;
  const rows = state.tab === "skipped";
  at("cards").className = rows ? "rows" : whole ? "photos" : "";
  at("cards").replaceChildren(...own.map(rows ? skippedRow : card));
  at("place").textContent = `page ${number(state.page)} of ${number(pages())}`;
  at("first").disabled = at("previous").disabled = state.page === 1;
  at("next").disabled = at("last").disabled = state.page === pages();
  at("empty").hidden = own.length > 0;
  at("empty").textContent = state.name || state.from > LOWEST || state.to < 100
    ? "Nothing here passes the filters." : "Nothing here.";
  mark();
  keepAddress();
}

// ---- A picture's card

function skippedRow(i) {
  const [name, reason] = data.skipped[i];
  const row = make("li", "card", make("span", "path", readable(name)), make("span", "", readable(reason)));
  row.tabIndex = -1;
  return row;
}

function card(i) {
  const open = button("", () => view(i), "open");
  open.setAttribute("aria-label", `Enlarge ${readable(data.names[data.picture[i]])}`);
  open.append(whole ? photo(i) : thumbnail(i));
  const result = make("li", "card", open);
  result.tabIndex = -1;
  result.addEventListener("focusin", () => {
    cursor = chosen.indexOf(i);
    mark();
  });
  fill(result, i);
  return result;
}

function fill(element, i) {
  while (element.children.length > 1) element.lastChild.remove();
  element.append(...summary(i), make("span", "path", readable(data.names[data.picture[i]])), choice(i));
}

function summary(i) {
  const net = `${data.classes[data.label[i]]} ${percent(data.confidence[i])}`;
  const label = labelOf(i);
  const rest = make("span", "confidence note");
  const line = make("div", "line", chip(label), rest);
  const faces = byPicture[data.picture[i]];
  const lines = [line];
  if (decided.has(i)) rest.textContent = `net: ${net}`;
  else rest.textContent = label === null ? net : percent(data.confidence[i]);
  if (faces.length > 1) {
    const which = make("span", "note", `face ${data.face[i] + 1} of ${faces.length}`);
    which.title = `Its number is ${data.face[i]} in a CSV and in the name of a crop, which count from 0.`;
    lines.push(which);
  }
  return lines;
}

function chip(label) {
  if (label === null) return make("span", "chip", "? uncertain");
  if (label === OUT) return make("span", "chip", "✕ left out");
  return make("span", `chip c${label}`, `${sign(label)} ${data.classes[label]}`);
}

function choice(i) {
  const group = make("div", "choose");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "Your label");
  const now = decided.get(i);
  const toggle = (label) => () => decide(i, now === label ? undefined : label);
  if (data.classes.length <= 4) {
    data.classes.forEach((name, label) => group.append(
      pressed(button(`${now === label ? "✓ " : ""}${name}`, toggle(label)), now === label)));
  } else {
    const select = make("select", "", new Option("your label", ""),
      ...data.classes.map((name, label) => new Option(name, label, false, now === label)));
    select.addEventListener("change", () => decide(i, select.value ? Number(select.value) : undefined));
    group.append(select);
  }
  const out = pressed(button("✕", toggle(OUT)), now === OUT);
  out.title = "leave this picture out of the exported labels";
  out.setAttribute("aria-label", "leave out");
  group.append(out);
  return group;
}

function pressed(element, on) {
  element.setAttribute("aria-pressed", on);
  return element;
}

// ---- Pictures: embedded ones, else the file itself

function embedded(n) {
  if (n === undefined || n < 0) return null;
  const lines = at(`t${Math.floor(n / data.block)}`)?.textContent.split("\n") ?? [];
  // Each line ends in a line break: one without is still being loaded.
  const place = n % data.block;
  return place < lines.length - 1 ? `data:image/jpeg;base64,${lines[place]}` : null;
}

function link(i) {
  if (data.base === null) return null;
  return `${data.base}/${encoded(data.names[data.picture[i]])}`;
}

function thumbnail(i) {
  const small = embedded(data.thumb[i]);
  return small ? framed(i, [small], false) : framed(i, [link(i)], true);
}

function photo(i, sharp = false) {
  const small = embedded(data.photo[data.picture[i]]);
  const plain = data.box[i] && data.photo[data.picture[i]] !== undefined ? null : embedded(data.thumb[i]);
  return framed(i, sharp ? [link(i), small, plain] : [small, plain, link(i)], true);
}

// Show the first of some addresses that can be shown; boxes are in pixels of the whole picture.
function framed(i, sources, boxed) {
  const rest = sources.filter(Boolean);
  const frame = make("span", "framed");
  const fail = () => frame.replaceChildren(make("span", "absent",
    document.readyState === "loading" && data.thumb[i] >= 0 ? "loading …" : "no preview: the file is not here"));
  if (!rest.length) {
    fail();
    return frame;
  }
  const image = new Image();
  image.alt = "";
  image.decoding = "async";
  image.loading = "lazy";
  image.addEventListener("error", () => {
    rest.shift();
    if (rest.length) image.src = rest[0];
    else fail();
  });
  image.addEventListener("load", () => {
    for (const each of frame.querySelectorAll(".box")) each.remove();
    if (!boxed) return;
    const size = rest[0].startsWith("data:")
      ? data.size[data.picture[i]] : [image.naturalWidth, image.naturalHeight];
    if (size) frame.append(...byPicture[data.picture[i]].map((one) => box(one, one === i, size)).filter(Boolean));
  });
  image.src = rest[0];
  frame.append(image);
  return frame;
}

function box(i, own, [width, height]) {
  if (!data.box[i]) return null;
  const [x, y, w, h] = data.box[i];
  const element = make("span", own ? "box own" : "box");
  const label = labelOf(i);
  const words = label === null ? "?" : label === OUT ? "✕" : `${sign(label)} ${data.classes[label]}`;
  element.append(make("span", "", own ? `${words} ${percent(data.confidence[i])}` : words));
  const share = (value, whole) => `${Math.min(100, Math.max(0, (100 * value) / whole))}%`;
  Object.assign(element.style, {
    left: share(x, width), top: share(y, height), width: share(w, width), height: share(h, height) });
  return element;
}

// ---- The large view

let viewed = null;
function view(i) {
  viewed = i;
  const stage = make("div", "stage", make("figure", "", photo(i, true)));
  if (i in data.why) {
    const map = new Image();
    map.alt = "the picture in grey, with parts in orange";
    map.src = embedded(data.why[i]) ?? "";
    stage.append(make("figure", "map", map,
      make("figcaption", "", make("b", "", "Where the net looked. "), data.caveat)));
  }
  const name = data.names[data.picture[i]];
  const foot = make("div", "foot", button("← Prev", () => move(-1)), button("Close", () => at("viewer").close()),
    button("Next →", () => move(1)));
  const lines = [stage, make("div", "line", ...summary(i)), choice(i), make("div", "path", readable(name))];
  if (link(i)) {
    const anchor = make("a", "", "open the file");
    anchor.href = link(i);
    anchor.target = "_blank";
    lines.push(anchor);
  }
  at("viewer").replaceChildren(...lines, foot);
  if (!at("viewer").open) at("viewer").showModal();
  at("viewer").focus(); // not a button, which Space and Enter would press
}

// ---- Decisions

function decide(i, label) {
  if (label === undefined) decided.delete(i);
  else decided.set(i, label);
  keep();
  // The list stays as it is, so that nothing moves under the pointer.
  showCounts(counted().counts);
  const place = chosen.indexOf(i) - (state.page - 1) * PAGE;
  const element = at("cards").children[place];
  if (element && state.tab !== "skipped") {
    fill(element, i);
    if (!at("viewer").open) element.focus();
  }
  if (at("viewer").open && viewed === i) view(i);
  told();
}

function keep() {
  try {
    localStorage.setItem(KEY, JSON.stringify([...decided]));
    kept = true;
  } catch {
    kept = false;
  }
}

function remember() {
  try {
    const pairs = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    decided = new Map(pairs.filter(([i, label]) => i in data.label && (label === OUT || label in data.classes)));
  } catch {
    decided = new Map();
  }
}

function told() {
  const count = decided.size;
  at("told").textContent = !count ? "" : kept ? `${number(count)} labelled by you, kept in this browser`
    : `${number(count)} labelled by you: this browser keeps nothing, export before you close the page`;
}

// ---- Export

// UTF-8, and the bytes of names that are not.
function bytesOf(text) {
  const pieces = text.split(/((?<![\ud800-\udbff])[\udc80-\udcff])/);
  return pieces.flatMap((piece, i) =>
    (i % 2 ? [piece.charCodeAt(0) - 0xdc00] : [...new TextEncoder().encode(piece)]));
}

function encoded(name) {
  return bytesOf(name).map((byte) => {
    const one = String.fromCharCode(byte);
    return /[\w./~-]/.test(one) ? one : `%${byte.toString(16).padStart(2, "0").toUpperCase()}`;
  }).join("");
}

function rows(own) {
  const single = byPicture.filter((faces) => faces.length === 1).map(([i]) => i);
  return single.filter((i) => !own || decided.has(i))
    .map((i) => [data.names[data.picture[i]], labelOf(i)])
    .filter(([, label]) => label !== null && label !== OUT)
    .sort(([one], [other]) => (one < other ? -1 : 1));
}

function csv(own) {
  const cell = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = rows(own).map(([name, label]) => `${cell(name)},${cell(data.classes[label])}\n`);
  return new Blob(["path,label\n", ...lines].map((line) => new Uint8Array(bytesOf(line))), { type: "text/csv" });
}

function save(own) {
  const anchor = make("a", "");
  anchor.href = URL.createObjectURL(csv(own));
  anchor.download = "labels.csv";
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60_000);
}

function offer() {
  for (const [id, own, words] of [["save-own", true, "Labels that you gave"],
    ["save-all", false, "All labels: yours, and the net's where it is certain"]]) {
    const count = rows(own).length;
    at(id).textContent = `${words} (${number(count)})`;
    at(id).disabled = !count;
  }
  const several = byPicture.filter((faces) => faces.length > 1).length;
  at("saving-note").textContent = "Uncertain pictures that you did not label, and those left out, are not in it."
    + (several ? ` Nor are ${number(several)} photos with several faces: a picture has one label.` : "");
  [at("saving-first").textContent, at("saving-then").textContent] = data.next;
  at("saving").showModal();
}

// ---- The address keeps the filters, so that reloading keeps them

let waiting = 0;
function keepAddress() {
  clearTimeout(waiting);
  // Browsers refuse when the address changes many times in a second.
  waiting = setTimeout(() => {
    const { tab, name, from, to, sort, page } = state;
    const parts = new URLSearchParams({ tab, from, to, sort, page });
    if (name) parts.set("name", name);
    history.replaceState(null, "", `#${parts}`);
  }, 200);
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const among = (key, allowed) => (allowed.includes(parts.get(key)) ? parts.get(key) : allowed[0]);
  const whole = (key, low, high, otherwise) => {
    const value = parts.has(key) ? Math.floor(Number(parts.get(key))) : NaN;
    return value >= low && value <= high ? value : otherwise;
  };
  state.tab = among("tab", TABS.map(([tab]) => tab));
  state.sort = among("sort", SORTS);
  state.name = parts.get("name") ?? "";
  state.from = whole("from", LOWEST, 100, LOWEST);
  state.to = whole("to", LOWEST, 100, 100);
  state.page = whole("page", 1, Number.MAX_SAFE_INTEGER, 1);
  cursor = (state.page - 1) * PAGE;
}

// ---- Keys

function mark() {
  const place = cursor - (state.page - 1) * PAGE;
  [...at("cards").children].forEach((element, i) => element.classList.toggle("current", i === place));
}

function turnTo(page) {
  const target = Math.min(Math.max(1, page), pages());
  if (target === state.page) return;
  state.page = target;
  cursor = (target - 1) * PAGE;
  showPage();
  const top = at("cards").getBoundingClientRect().top;
  if (top < 0) scrollBy(0, top - 8);
}

function move(step) {
  const target = cursor + step;
  if (target < 0 || target >= chosen.length) return;
  cursor = target;
  const page = Math.floor(target / PAGE) + 1;
  if (page !== state.page) {
    state.page = page;
    showPage();
  }
  mark();
  if (at("viewer").open) view(chosen[cursor]);
  else at("cards").children[cursor % PAGE].focus();
}

function columns() {
  const cards = [...at("cards").children];
  const wrapped = cards.findIndex((each) => each.offsetTop > cards[0].offsetTop);
  return wrapped < 0 ? cards.length : wrapped;
}

function label(choice) {
  if (state.tab === "skipped" || !chosen.length) return;
  decide(chosen[cursor], choice);
  if (choice !== undefined) move(1);
}

// By the code of the key that is so named on a keyboard of the United States.
const KEYS = {
  ArrowLeft: () => move(-1), ArrowRight: () => move(1),
  ArrowUp: () => move(-columns()), ArrowDown: () => move(columns()),
  PageUp: () => turnTo(state.page - 1), PageDown: () => turnTo(state.page + 1),
  Home: () => turnTo(1), End: () => turnTo(pages()),
  Space: () => toggleView(), Enter: () => toggleView(),
  KeyX: () => label(OUT), KeyU: () => label(undefined), Backspace: () => label(undefined),
  KeyW: () => toggleWhole(), KeyE: () => offer(), Slash: () => at("name").focus(),
};
const HELP = [
  ["← → ↑ ↓", "go from picture to picture"], ["PgUp PgDn Home End", "turn pages"],
  ["Space or Enter", "enlarge, and back"], ["X", "leave the picture out"],
  ["U or Backspace", "take your label back"], ["W", "faces or whole photos"],
  ["E", "export labels"], ["/", "search by name"], ["Esc", "back to the pictures"], ["?", "this list"],
];

function toggleView() {
  if (at("viewer").open) at("viewer").close();
  else if (chosen.length && state.tab !== "skipped") view(chosen[cursor]);
}

function toggleWhole() {
  if (at("whole").hidden) return;
  whole = !whole;
  pressed(at("whole"), whole);
  showPage();
}

// Latin letters and the slash are keys by their name, wherever a layout has them (AZERTY, QWERTZ);
// those of other alphabets, such as Russian ones, by their place.
function codeOf(event) {
  if (/^[a-z]$/i.test(event.key)) return `Key${event.key.toUpperCase()}`;
  if (event.key === "/") return "Slash";
  return /^[ -~]$/.test(event.key) && event.code.startsWith("Key") ? "" : event.code;
}

function press(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const target = event.target;
  if (event.key === "Escape" && !target.closest("dialog")) target.blur();
  if (target.closest("input, select, #keys, #saving")) return;
  if (event.key === "?" || (event.code === "Slash" && event.shiftKey && event.key !== "_")) {
    event.preventDefault();
    at("keys").showModal();
    return;
  }
  if (event.shiftKey && event.key !== "/") return;
  const code = codeOf(event);
  if (target.closest("button, a") && ["Space", "Enter"].includes(event.code)) return;
  if (at("viewer").open && ["ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End", "KeyW", "KeyE", "Slash"]
    .includes(code)) return;
  const act = KEYS[code];
  if (!act) return;
  event.preventDefault();
  act();
}

// ---- Start

function choose(changes) {
  Object.assign(state, { page: 1 }, changes);
  cursor = 0;
  refresh();
}

function nameKeys() {
  const taken = new Set(["X", "U", "W", "E"]);
  const named = data.classes.slice(0, 9).map((name, label_) => {
    const letter = name[0].toUpperCase();
    const keys = [String(label_ + 1)];
    KEYS[`Digit${label_ + 1}`] = KEYS[`Numpad${label_ + 1}`] = () => label(label_);
    if (/[A-Z]/.test(letter) && !taken.has(letter)) {
      KEYS[`Key${letter}`] = () => label(label_);
      keys.unshift(letter);
    }
    taken.add(letter);
    return [keys.join(" or "), `label it ${name}, and go on`];
  });
  for (const [keys, words] of [HELP[0], ...named, ...HELP.slice(1)]) {
    const row = at("keys-table").insertRow();
    row.insertCell().append(make("kbd", "", keys));
    row.insertCell().append(words);
  }
}

function start() {
  at("facts").textContent = data.facts.map(([name, value]) => `${name} ${readable(value)}`).join(" · ");
  for (const [tab, title] of TABS) {
    const element = button(title, () => choose({ tab }));
    element.append(make("span", "count"));
    at("tabs").append(element);
  }
  at("from").min = at("to").min = LOWEST;
  at("whole").hidden = Object.keys(data.box).length === 0;
  at("name").addEventListener("input", (event) => choose({ name: event.target.value }));
  at("sort").addEventListener("change", (event) => choose({ sort: event.target.value }));
  for (const id of ["from", "to"]) {
    at(id).addEventListener("input", (event) => choose({ [id]: Number(event.target.value) }));
  }
  at("whole").addEventListener("click", toggleWhole);
  at("export").addEventListener("click", offer);
  at("ask").addEventListener("click", () => at("keys").showModal());
  at("save-own").addEventListener("click", () => save(true));
  at("save-all").addEventListener("click", () => save(false));
  at("first").addEventListener("click", () => turnTo(1));
  at("previous").addEventListener("click", () => turnTo(state.page - 1));
  at("next").addEventListener("click", () => turnTo(state.page + 1));
  at("last").addEventListener("click", () => turnTo(pages()));
  document.addEventListener("keydown", press);
  // The pictures stand behind this script in the page, and come later.
  document.addEventListener("DOMContentLoaded", showPage);
  addEventListener("hashchange", () => { readAddress(); refresh(); });
  addEventListener("storage", (event) => {
    if (event.key !== KEY) return;
    remember();
    refresh();
    told();
  });
  addEventListener("beforeunload", (event) => { if (!kept && decided.size) event.preventDefault(); });
  nameKeys();
  remember();
  readAddress();
  refresh();
  told();
}

start();
