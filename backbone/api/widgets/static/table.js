// The live table's browser half: builds the table from `state`, then applies deltas cell by cell. Text only goes in
// through textContent. Deltas: {t: "d", c: [[row, column, text, number]], a: [[row, age]], s: [state, level, note]}.
const AGE_COLUMN = "age";

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
  const line = element("div", "bb-line", root);
  const dot = element("span", "bb-dot", line);
  const stateText = element("span", "bb-state", line);
  const noteText = element("span", "bb-note", line);
  const filter = element("input", "bb-filter", line);
  filter.type = "search";
  filter.placeholder = "filter";
  filter.setAttribute("aria-label", "filter markets");
  const scroll = element("div", "bb-scroll", root);
  const table = element("table", "", scroll);

  let rows = []; // {tr, cells, numbers, label, seen}
  let columns = [];
  let heads = [];
  let sort = null; // {column, down}
  let stale = 30;
  let ageAt = -1;

  function showLine([state, level, note]) {
    dot.dataset.level = level;
    stateText.textContent = state;
    noteText.textContent = note;
    root.dataset.level = level;
  }

  function tone(row) {
    const change = row.numbers[columns.findIndex((c) => c[0] === "change")];
    row.tr.dataset.tone = change > 0 ? "up" : change < 0 ? "down" : "flat";
  }

  function showAge(row, now) {
    const seconds = row.seen === null ? null : (now - row.seen) / 1000;
    const text = ageText(seconds);
    const cell = row.cells[ageAt];
    if (cell && cell.textContent !== text) cell.textContent = text;
    const isStale = seconds !== null && seconds > stale ? "yes" : "";
    if (row.tr.dataset.stale !== isStale) row.tr.dataset.stale = isStale;
  }

  function order() {
    if (!sort) return;
    const at = sort.column;
    const value = (row) => (at === ageAt ? -row.seen : row.numbers[at] ?? row.cells[at].textContent);
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
    sort = sort && sort.column === column ? { column, down: !sort.down } : { column, down: columns[column][2] === "number" };
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : sort.down ? "descending" : "ascending"));
    order();
  }

  function build() {
    const state = model.get("state");
    columns = state.columns || [];
    stale = state.stale ?? 30;
    ageAt = columns.findIndex((c) => c[0] === AGE_COLUMN);
    root.dataset.colours = state.colours || "korean";
    scroll.style.maxHeight = state.height || "";
    table.replaceChildren();
    const headRow = element("tr", "", element("thead", "", table));
    heads = columns.map(([, label, kind], i) => {
      const head = element("th", kind, headRow);
      head.scope = "col";
      head.setAttribute("aria-sort", "none");
      const button = element("button", "", head);
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", () => setSort(i));
      return head;
    });
    const body = element("tbody", "", table);
    const now = performance.now();
    rows = (state.rows || []).map((texts, i) => {
      const tr = element("tr", "", body);
      const cells = texts.map((text, j) => {
        const cell = element("td", `${columns[j][2]} bb-${columns[j][0]}`, tr);
        cell.textContent = text;
        return cell;
      });
      const name = (state.names || [])[i];
      if (name) element("span", "bb-name", cells[0]).textContent = name;
      const age = state.ages[i];
      const row = {
        tr, cells, numbers: state.numbers[i], label: `${texts[0]} ${name || ""}`.toLowerCase(),
        seen: age === null ? null : now - age * 1000,
      };
      tone(row);
      showAge(row, now);
      return row;
    });
    filter.hidden = rows.length < 12;
    showLine(state.line || ["", "off", ""]);
    showFilter();
    if (sort) order();
  }

  function flash(cell, up) {
    cell.classList.remove("bb-rose", "bb-fell");
    void cell.offsetWidth; // restart the animation
    cell.classList.add(up ? "bb-rose" : "bb-fell");
  }

  function apply(delta) {
    const now = performance.now();
    for (const [i, j, text, number] of delta.c || []) {
      const row = rows[i];
      if (!row) continue;
      const before = row.numbers[j];
      row.cells[j].textContent = text;
      row.numbers[j] = number;
      if (columns[j][0] === "price" && before !== null && number !== before) flash(row.cells[j], number > before);
      if (columns[j][0] === "change") tone(row);
    }
    for (const [i, age] of delta.a || []) {
      if (!rows[i]) continue;
      rows[i].seen = age === null ? null : now - age * 1000;
      showAge(rows[i], now);
    }
    if (delta.s) showLine(delta.s);
  }

  const onMessage = (message) => message.t === "d" && apply(message);
  const everySecond = setInterval(() => {
    const now = performance.now();
    for (const row of rows) showAge(row, now);
    order();
  }, 1000);
  filter.addEventListener("input", showFilter);
  model.on("change:state", build);
  model.on("msg:custom", onMessage);
  build();
  const leave = announce(model);
  return () => {
    clearInterval(everySecond);
    model.off("change:state", build);
    model.off("msg:custom", onMessage);
    leave();
  };
}

export default { render };
