// The dashboard's browser half: a state line and cards, each redrawn when its HTML is another one. The kernel escapes
// every text in them. `state.parts` is [[name, html], …].
function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "bb-dash";
  el.appendChild(root);
  let parts = new Map();

  function build() {
    const sent = model.get("state").parts || [];
    if (sent.length !== parts.size || sent.some(([name]) => !parts.has(name))) lay(sent);
    for (const [name, html] of sent) {
      const part = parts.get(name);
      if (part.html !== html) part.element.innerHTML = part.html = html;
    }
  }

  function lay(sent) {
    parts = new Map();
    root.replaceChildren();
    const cards = document.createElement("div");
    cards.className = "bb-cards";
    for (const [name] of sent) {
      const element = document.createElement("div");
      element.className = name === "" ? "bb-line" : "bb-card";
      (name === "" ? root : cards).appendChild(element);
      parts.set(name, { element, html: "" });
    }
    root.appendChild(cards);
  }

  model.on("change:state", build);
  build();
  const leave = announce(model);
  return () => {
    model.off("change:state", build);
    leave();
  };
}

export default { render };
