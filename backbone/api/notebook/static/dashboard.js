// The dashboard's browser half: a state line and cards, each redrawn when it is another one. The kernel makes the HTML,
// and escapes every text in it.
function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "bb-dash";
  el.appendChild(root);

  function show() {
    const next = document.createElement("template");
    next.innerHTML = model.get("state").html;
    const parts = [...next.content.children];
    parts.forEach((part, i) => {
      const old = root.children[i];
      if (!old) root.append(part);
      else if (!old.isEqualNode(part)) old.replaceWith(part);
    });
    while (root.children.length > parts.length) root.lastChild.remove();
  }

  model.on("change:state", show);
  show();
  const leave = announce(model);
  return () => {
    model.off("change:state", show);
    leave();
  };
}

export default { render };
