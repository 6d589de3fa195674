// The cards of the gallery, made some at a time as the reader comes to them: a page of thousands opens at once.

const AT_ONCE = 48;
const AHEAD = "1500px";

class Gallery {
  #cards = [];
  #methods = new Set();
  #made = 0;

  constructor(data, container, end) {
    this.sizes = data.sizes;
    this.container = container;
    this.end = end;
    this.observer = new IntersectionObserver((entries) => entries.at(-1).isIntersecting && this.#more(), {
      rootMargin: AHEAD,
    });
  }

  show(cards, methods) {
    this.#cards = cards;
    this.#methods = methods;
    this.#made = 0;
    this.container.replaceChildren();
    this.#more();
  }

  get cards() {
    return this.#cards;
  }

  // Gives the focus to the card that is so many after the one that has it; the first where none has.
  step(by) {
    const links = [...this.container.querySelectorAll(".card-link")];
    const now = links.indexOf(document.activeElement);
    const next = links[now < 0 ? 0 : Math.min(links.length - 1, Math.max(0, now + by))];
    next?.focus();
    next?.closest(".card").scrollIntoView({ block: "nearest" });
  }

  // Gives the focus to a card, if need be made with all before it.
  focus(card) {
    const place = this.#cards.indexOf(card);
    while (place >= this.#made) {
      this.#more();
    }
    byId(`card-${card.id}`)?.querySelector(".card-link").focus();
  }

  #more() {
    const next = this.#cards.slice(this.#made, this.#made + AT_ONCE);
    this.container.append(...next.map((card) => cardElement(card, this.sizes[card.size], this.#methods)));
    this.#made += next.length;
    // Observed anew, the end is looked at again even if it did not leave the window meanwhile.
    this.observer.unobserve(this.end);
    if (this.#made < this.#cards.length) {
      this.observer.observe(this.end);
    }
  }
}

function cardElement(card, size, methods) {
  const link = element("a", { className: "card-link", dir: "auto", href: pairFragment(card) }, card.prompt);
  const about = element("span", { className: "faint" }, `${size.label}, seed ${card.seed}`);
  const caption = element("figcaption", {}, link, " ", about);
  if (size.control) {
    caption.append(" ", element("span", { className: "tag" }, "control: N = T"));
  }
  const pair = element("div", { className: "pair" });
  pair.append(...shownPictures(card, methods).map((one) => pictureElement(card, one)));
  const made = element("figure", { className: "card", id: `card-${card.id}` }, caption, pair);
  made.style.setProperty("--width", `${size.shownWidth}px`);
  made.style.setProperty("--height", `${size.shownHeight}px`);
  made.style.setProperty("--width-over-height", `${size.shownWidth} / ${size.shownHeight}`);
  made.addEventListener("click", (event) => event.target === link || link.click());
  return made;
}

function pictureElement(card, picture) {
  const place =
    picture.state === "drawn"
      ? element("img", { src: picture.thumbnail, alt: alternative(card, picture), decoding: "async" })
      : element("div", { className: "hole" });
  const note = element("p", { className: noteClass(picture) }, picture.note);
  return element("figure", { className: "picture" }, element("strong", {}, picture.method), place, note);
}

function alternative(card, picture) {
  return [card.prompt, picture.method, picture.note].filter(Boolean).join(", ");
}

function noteClass(picture) {
  if (VERDICTS.failed(picture)) {
    return "bad";
  }
  return VERDICTS.exact(picture) ? "good" : "faint";
}
