// Which cards are shown, and in which order. A card is kept where one of its pictures by the chosen methods fits.

const VERDICTS = {
  any: () => true,
  exact: (picture) => picture.objects !== null && picture.objects[0] === 1,
  faulty: (picture) => picture.objects !== null && picture.objects[0] !== 1,
  missing: (picture) => picture.objects !== null && picture.objects[1] > 0,
  extra: (picture) => picture.objects !== null && picture.objects[2] > 0,
  failed: (picture) => picture.state === "failed" || picture.state === "lost",
  open: (picture) => picture.state === "open",
};
const FAILED = 1e9;

function readFilters(form) {
  const fields = form.elements;
  return {
    size: fields.size.value,
    verdict: fields.verdict.value,
    order: fields.order.value,
    prompt: fields.prompt.value.trim().toLowerCase(),
    methods: new Set([...form.querySelectorAll("[name=method]:checked")].map((box) => box.value)),
  };
}

function chosenCards(cards, filters) {
  const kept = cards.filter((card) => fits(card, filters));
  if (filters.order === "sweep") {
    return kept;
  }
  const badness = filters.order === "difference" ? difference : worst;
  const keyed = kept.map((card) => [badness(shownPictures(card, filters.methods)), card]);
  return keyed.sort(([one], [other]) => other - one).map(([, card]) => card);
}

// What the sweep leaves out of its own accord is not missing.
function shownPictures(card, methods) {
  return card.pictures.filter((picture) => methods.has(picture.method) && picture.state !== "left out");
}

function fits(card, filters) {
  return (
    (filters.size === "" || card.size === Number(filters.size)) &&
    card.searched.includes(filters.prompt) &&
    shownPictures(card, filters.methods).some(VERDICTS[filters.verdict])
  );
}

// Failed first, then by objects that are missing or too many; what was not counted or not drawn comes last.
function faults(picture) {
  if (VERDICTS.failed(picture)) {
    return FAILED;
  }
  return picture.objects === null ? -1 : picture.objects[1] + picture.objects[2] + (picture.objects[0] === 1 ? 0 : 0.5);
}

function worst(pictures) {
  return Math.max(...pictures.map(faults));
}

function difference(pictures) {
  const counted = pictures.map(faults).filter((count) => count >= 0);
  return counted.length < 2 ? -1 : Math.max(...counted) - Math.min(...counted);
}
