// The live table's browser half: builds the table from `state`, then applies deltas; only cells that differ are touched.
// Text only goes in through textContent. Deltas: {t: "d", r: [[row, texts, numbers]], a: [[row, age]], s: [state, level, note]}.
function ageText(seconds) {
  if (seconds === null || !isFinite(seconds)) return "–";
  if (seconds < 1.5) return "now";
  if (seconds < 99.5) return Math.round(seconds) + "s";
  if (seconds < 5970) return Math.round(seconds / 60) + "m";
  return Math.round(seconds / 3600) + "h";
}

function element(tag, name, parent) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (parent) parent.appendChild(made);
  return made;
}

function render({ model, el }) {
  const root = element("div", "bb-table", el);
  const top = element("div", "bb-line", root);
  const dot = element("span", "bb-dot", top);
  const stateText = element("span", "bb-state", top);
  const noteText = element("span", "bb-note", top);
  const filter = element("input", "bb-filter", top);
  filter.type = "search";
  filter.placeholder = "filter";
  filter.setAttribute("aria-label", "filter markets");
  const scroll = element("div", "bb-scroll", root);
  const table = element("table", "", scroll);

  let rows = []; // {tr, cells, texts, numbers, label, seen, isVisible, flash}
  let byElement = new Map();
  let columns = [];
  let heads = [];
  let sort = null; // {column, down}
  let stale = 30;
  let [priceAt, changeAt, ageAt] = [-1, -1, -1];
  let line = null;
  const dirty = new Set();
  const isStill = window.matchMedia("(prefers-reduced-motion: reduce)");
  let frame = 0;

  // Only rows within sight are painted, once a frame at most: a busy market must not busy the browser.
  const sight = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const row = byElement.get(entry.target);
      if (!row) continue;
      row.isVisible = entry.isIntersecting;
      if (row.isVisible) dirty.add(row);
    }
    paintSoon();
  });

  function paintSoon() {
    if (!frame) frame = requestAnimationFrame(paint);
  }

  function paint() {
    frame = 0;
    const now = performance.now();
    for (const row of dirty) if (row.isVisible) paintRow(row, now);
    dirty.clear();
    if (line) {
      const [state, level, note] = line;
      dot.dataset.level = root.dataset.level = level;
      stateText.textContent = state;
      noteText.textContent = note;
      line = null;
    }
  }

  function paintRow(row, now) {
    row.texts.forEach((text, j) => put(row.cells[j], text));
    const change = row.numbers[changeAt];
    mark(row.tr, "tone", change > 0 ? "up" : change < 0 ? "down" : "flat");
    if (row.flash) {
      const background = `color-mix(in srgb, var(${row.flash > 0 ? "--bb-up" : "--bb-down"}) 30%, transparent)`;
      if (!isStill.matches) row.cells[priceAt].animate([{ background }, {}], { duration: 700, easing: "ease-out" });
      row.flash = 0;
    }
    showAge(row, now);
  }

  function put(cell, text) {
    const node = cell.firstChild;
    if (node.data !== text) node.data = text;
  }

  function mark(tr, name, value) {
    if (tr.dataset[name] !== value) tr.dataset[name] = value;
  }

  function showAge(row, now) {
    const seconds = row.seen === null ? null : (now - row.seen) / 1000;
    put(row.cells[ageAt], ageText(seconds));
    mark(row.tr, "stale", seconds !== null && seconds > stale ? "yes" : "");
  }

  function order() {
    if (!sort) return;
    const at = sort.column;
    const value = (row) => (at === ageAt ? -row.seen : row.numbers[at] ?? row.texts[at]);
    const sorted = rows.slice().sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      const by = x < y ? -1 : x > y ? 1 : 0;
      return sort.down ? -by : by;
    });
    const body = table.tBodies[0];
    sorted.forEach((row, i) => {
      if (body.children[i] !== row.tr) body.insertBefore(row.tr, body.children[i] || null);
    });
  }

  function showFilter() {
    const wanted = filter.value.trim().toLowerCase();
    for (const row of rows) row.tr.hidden = wanted !== "" && !row.label.includes(wanted);
  }

  function setSort(column) {
    const isNumber = columns[column][2] === "number";
    sort = sort && sort.column === column ? { column, down: !sort.down } : { column, down: isNumber };
    showSort();
  }

  function showSort() {
    const says = (i) => (i !== sort.column ? "none" : sort.down ? "descending" : "ascending");
    heads.forEach((head, i) => head.setAttribute("aria-sort", says(i)));
    order();
  }

  function buildHead() {
    const headRow = element("tr", "", element("thead", "", table));
    heads = columns.map(([key, label, kind], i) => {
      const head = element("th", `${kind} bb-col-${key}`, headRow);
      head.scope = "col";
      head.setAttribute("aria-sort", "none");
      const button = element("button", "", head);
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", () => setSort(i));
      return head;
    });
  }

  function buildRow(state, i, body, now) {
    const texts = state.rows[i];
    const name = (state.names || [])[i] || "";
    const tr = element("tr", "", body);
    const cells = columns.map(([key, , kind], j) => {
      const cell = element("td", `${kind} bb-${key}`, tr);
      cell.appendChild(document.createTextNode(texts[j] ?? ""));
      return cell;
    });
    if (name) element("span", "bb-name", cells[0]).textContent = name;
    const age = state.ages[i];
    const row = {
      tr, cells, texts, numbers: state.numbers[i], label: `${texts[0]} ${name}`.toLowerCase(),
      seen: age === null ? null : now - age * 1000, isVisible: true, flash: 0,
    };
    byElement.set(tr, row);
    paintRow(row, now);
    sight.observe(tr);
    return row;
  }

  function build() {
    const state = model.get("state");
    columns = state.columns || [];
    stale = state.stale ?? 30;
    [priceAt, changeAt, ageAt] = ["price", "change", "age"].map((key) => columns.findIndex((c) => c[0] === key));
    root.dataset.colours = state.colours || "korean";
    scroll.style.maxHeight = state.height || "";
    sight.disconnect();
    dirty.clear();
    byElement = new Map();
    table.replaceChildren();
    buildHead();
    const body = element("tbody", "", table);
    const now = performance.now();
    rows = (state.rows || []).map((_, i) => buildRow(state, i, body, now));
    filter.hidden = rows.length < 12;
    line = state.line || ["", "off", ""];
    showFilter();
    if (sort) showSort();
    paint();
  }

  function apply(delta) {
    const now = performance.now();
    for (const [i, texts, numbers] of delta.r || []) {
      const row = rows[i];
      if (!row) continue;
      const [before, after] = [row.numbers[priceAt], numbers[priceAt]];
      if (before !== null && after !== null && after !== before) row.flash = after - before;
      Object.assign(row, { texts, numbers });
      dirty.add(row);
    }
    for (const [i, age] of delta.a || []) {
      if (!rows[i]) continue;
      rows[i].seen = age === null ? null : now - age * 1000;
      dirty.add(rows[i]);
    }
    if (delta.s) line = delta.s;
    paintSoon();
  }

  const onMessage = (message) => message.t === "d" && apply(message);
  const everySecond = setInterval(() => {
    const now = performance.now();
    for (const row of rows) if (row.isVisible) showAge(row, now);
    order();
  }, 1000);
  filter.addEventListener("input", showFilter);
  model.on("change:state", build);
  model.on("msg:custom", onMessage);
  build();
  const leave = announce(model);
  return () => {
    clearInterval(everySecond);
    cancelAnimationFrame(frame);
    sight.disconnect();
    model.off("change:state", build);
    model.off("msg:custom", onMessage);
    leave();
  };
}

export default { render };
