// Tells the kernel that somebody sees this view, so that a view which nobody sees costs nothing.
export function announce(model) {
  const id = Math.random().toString(36).slice(2);
  const say = (what) => {
    try {
      model.send({ t: what, v: id });
    } catch {
      // no kernel behind a saved page: there is nobody to tell
    }
  };
  say("seen");
  const timer = setInterval(() => say("seen"), 30_000);
  return () => {
    clearInterval(timer);
    say("gone");
  };
}
