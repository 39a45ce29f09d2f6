// The dashboard's browser half: a state line and cards, each replaced when the kernel sends another one. The kernel
// escapes every text in them. `state.parts` is [[name, html], …]; messages are {t: "d", p: {name: html}}.
function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "bb-dash";
  el.appendChild(root);
  let parts = new Map();

  function build() {
    parts = new Map();
    root.replaceChildren();
    const cards = document.createElement("div");
    cards.className = "bb-cards";
    for (const [name, html] of model.get("state").parts || []) {
      const part = document.createElement("div");
      part.className = name === "" ? "bb-line" : "bb-card";
      part.innerHTML = html;
      (name === "" ? root : cards).appendChild(part);
      parts.set(name, part);
    }
    root.appendChild(cards);
  }

  function onMessage(message) {
    if (message.t !== "d") return;
    for (const [name, html] of Object.entries(message.p)) {
      const part = parts.get(name);
      if (part) part.innerHTML = html;
    }
  }

  model.on("change:state", build);
  model.on("msg:custom", onMessage);
  build();
  const leave = announce(model);
  return () => {
    model.off("change:state", build);
    model.off("msg:custom", onMessage);
    leave();
  };
}

export default { render };
