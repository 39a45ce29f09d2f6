// The chart's browser half. `data` holds the candles as little-endian float64, six a row: time (seconds, already shifted
// to the shown zone), open, high, low, close, volume. Messages: {t: "u", rows: [[…six…], …]} for the live candle.
import { CandlestickSeries, ColorType, CrosshairMode, HistogramSeries, createChart } from "lightweight-charts";
import { announce } from "../static/presence.js";

const WIDTH = 6;

function element(tag, name, parent) {
  const made = document.createElement(tag);
  made.className = name;
  parent.appendChild(made);
  return made;
}

function isDark(el) {
  const isLight = document.body.dataset.jpThemeLight;
  if (isLight !== undefined) return isLight === "false";
  if (document.body.classList.contains("vscode-dark")) return true;
  if (document.body.classList.contains("vscode-light")) return false;
  return window.matchMedia("(prefers-color-scheme: dark)").matches;
}

function palette(el, colours) {
  const dark = isDark(el);
  const red = dark ? "#f2706a" : "#d24a3c";
  const blue = dark ? "#5b9bf5" : "#2468c8";
  const green = dark ? "#3ecf8e" : "#0a8754";
  const [up, down] = colours === "western" ? [green, red] : [red, blue];
  return {
    up, down,
    text: dark ? "#b3b8c2" : "#4b5563",
    rule: dark ? "rgba(255,255,255,.07)" : "rgba(0,0,0,.07)",
    edge: dark ? "rgba(255,255,255,.18)" : "rgba(0,0,0,.18)",
    label: dark ? "#4b5563" : "#374151",
  };
}

function render({ model, el }) {
  const root = element("div", "bb-chart", el);
  const line = element("div", "bb-line", root);
  const dot = element("span", "bb-dot", line);
  const title = element("span", "bb-state", line);
  const last = element("span", "bb-last", line);
  const note = element("span", "bb-note", line);
  const stage = element("div", "bb-stage", root);
  const legend = element("div", "bb-legend", stage);

  const state = () => model.get("state");
  let colours = palette(el, state().colours);
  let rows = [];
  let hovered = null;

  const digits = () => state().digits ?? 0;
  const price = (value) =>
    value.toLocaleString("en-US", { minimumFractionDigits: digits(), maximumFractionDigits: Math.max(digits(), 8) });
  const amount = (value) => {
    const size = Math.abs(value);
    for (const [unit, name] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]])
      if (size >= unit) return (value / unit).toFixed(2) + name;
    return value === 0 ? "0" : Number(value.toPrecision(4)).toString();
  };

  const chart = createChart(stage, {
    autoSize: true,
    height: state().height,
    layout: { background: { type: ColorType.Solid, color: "transparent" }, fontSize: 11, attributionLogo: true },
    crosshair: { mode: CrosshairMode.Normal },
    rightPriceScale: { borderVisible: false },
    timeScale: { borderVisible: false, timeVisible: true, rightOffset: 4, minBarSpacing: 0.5 },
    localization: { locale: "en-US" },
  });
  const candles = chart.addSeries(CandlestickSeries, { borderVisible: false });
  const volumes = chart.addSeries(HistogramSeries, {
    priceFormat: { type: "custom", formatter: amount, minMove: 1e-8 }, priceScaleId: "volume",
    lastValueVisible: false, priceLineVisible: false,
  });
  candles.priceScale().applyOptions({ scaleMargins: { top: 0.08, bottom: 0.26 } });
  chart.priceScale("volume").applyOptions({ scaleMargins: { top: 0.8, bottom: 0 } });

  const candle = (row) => ({ time: row[0], open: row[1], high: row[2], low: row[3], close: row[4] });
  const volume = (row) => ({ time: row[0], value: row[5], color: (row[4] >= row[1] ? colours.up : colours.down) + "66" });

  function paint() {
    colours = palette(el, state().colours);
    chart.applyOptions({
      layout: { textColor: colours.text, fontFamily: getComputedStyle(root).fontFamily },
      grid: { vertLines: { color: colours.rule }, horzLines: { color: colours.rule } },
      crosshair: {
        vertLine: { color: colours.edge, labelBackgroundColor: colours.label },
        horzLine: { color: colours.edge, labelBackgroundColor: colours.label },
      },
    });
    candles.applyOptions({
      upColor: colours.up, downColor: colours.down, wickUpColor: colours.up, wickDownColor: colours.down,
    });
    volumes.setData(rows.map(volume));
  }

  function showLegend() {
    const row = hovered ?? rows[rows.length - 1];
    legend.replaceChildren();
    if (!row) {
      legend.textContent = "no candles";
      return;
    }
    const tone = row[4] >= row[1] ? colours.up : colours.down;
    const parts = [["O", price(row[1])], ["H", price(row[2])], ["L", price(row[3])], ["C", price(row[4])], ["V", amount(row[5])]];
    for (const [name, value] of parts) {
      element("span", "bb-key", legend).textContent = name;
      const text = element("span", "bb-value", legend);
      text.textContent = value;
      text.style.color = tone;
    }
  }

  function showLine() {
    const { title: name, line: says, level } = state();
    title.textContent = name;
    note.textContent = says;
    dot.dataset.level = level;
    const row = rows[rows.length - 1];
    last.textContent = row ? price(row[4]) : "";
    last.style.color = row ? (row[4] >= row[1] ? colours.up : colours.down) : "";
  }

  function applyState() {
    const { tick, seconds } = state();
    candles.applyOptions({ priceFormat: { type: "custom", formatter: price, minMove: tick } });
    chart.applyOptions({ timeScale: { timeVisible: seconds < 86400, secondsVisible: seconds < 60 } });
    stage.style.height = state().height + "px";
    showLine();
  }

  function setData() {
    const bytes = model.get("data");
    const view = bytes instanceof DataView ? bytes : new DataView(bytes.buffer ?? bytes);
    const count = Math.floor(view.byteLength / 8 / WIDTH);
    rows = Array.from({ length: count }, (_, i) =>
      Array.from({ length: WIDTH }, (_, j) => view.getFloat64((i * WIDTH + j) * 8, true)));
    candles.setData(rows.map(candle));
    volumes.setData(rows.map(volume));
    showLine();
    showLegend();
  }

  function update(changed) {
    for (const row of changed) {
      const tail = rows.length ? rows[rows.length - 1][0] : -Infinity;
      const isOld = row[0] < tail;
      if (isOld) {
        const at = rows.findIndex((known) => known[0] === row[0]);
        if (at < 0) continue; // the kernel sends the whole when a candle is inserted
        rows[at] = row;
      } else if (row[0] === tail) rows[rows.length - 1] = row;
      else rows.push(row);
      candles.update(candle(row), isOld);
      volumes.update(volume(row), isOld);
    }
    showLine();
    if (hovered === null) showLegend();
  }

  chart.subscribeCrosshairMove((move) => {
    const at = move.time === undefined ? undefined : move.seriesData.get(candles);
    const bar = at === undefined ? undefined : move.seriesData.get(volumes);
    hovered = at === undefined ? null : [at.time, at.open, at.high, at.low, at.close, bar?.value ?? 0];
    showLegend();
  });

  const onMessage = (message) => message.t === "u" && update(message.rows);
  const themes = new MutationObserver(() => { paint(); showLine(); showLegend(); });
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  model.on("change:state", applyState);
  model.on("change:data", setData);
  model.on("msg:custom", onMessage);
  paint();
  applyState();
  setData();
  const shown = Math.min(rows.length, state().show ?? 150);
  chart.timeScale().setVisibleLogicalRange({ from: rows.length - shown - 1, to: rows.length + 3 });
  const leave = announce(model);
  return () => {
    themes.disconnect();
    model.off("change:state", applyState);
    model.off("change:data", setData);
    model.off("msg:custom", onMessage);
    leave();
    chart.remove();
  };
}

export default { render };
