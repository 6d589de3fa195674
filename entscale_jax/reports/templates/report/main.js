function start() {
  startTheme(byId("theme"));
  startTables();
  const data = JSON.parse(byId("data").textContent);
  byId("data").remove();
  for (const card of data.cards) {
    card.searched = card.prompt.toLowerCase();
  }
  const form = byId("filters");
  const gallery = new Gallery(data, byId("cards"), byId("end"));
  const viewer = new Viewer(data, gallery, byId("viewer"));

  const show = () => {
    const filters = readFilters(form);
    const cards = chosenCards(data.cards, filters);
    gallery.show(cards, filters.methods);
    byId("count").textContent = `${cards.length} of ${data.cards.length} pairs`;
  };
  form.hidden = false;
  form.addEventListener("input", show);
  form.addEventListener("reset", () => requestAnimationFrame(show));
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => pageKey(event, gallery, form));
  window.addEventListener("hashchange", () => viewer.follow(location.hash));
  show();
  viewer.follow(location.hash);
}

function pageKey(event, gallery, form) {
  if (byId("viewer").open || isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey) {
    return;
  }
  const actions = { j: () => gallery.step(1), k: () => gallery.step(-1), "/": () => form.elements.prompt.focus() };
  if (actions[event.key] !== undefined) {
    event.preventDefault();
    actions[event.key]();
  }
}

start();
