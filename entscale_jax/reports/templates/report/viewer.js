// Two pictures of a pair, one over the other, with a slider that wipes between them; its address is a permanent link.

const WIPE_STEP = 5;

function pairFragment(card, left, right) {
  const parts = new URLSearchParams({ pair: card.id });
  if (left !== undefined) {
    parts.set("left", left);
    parts.set("right", right);
  }
  return `#${parts}`;
}

class Viewer {
  #card = null;

  constructor(data, gallery, dialog) {
    this.data = data;
    this.gallery = gallery;
    this.dialog = dialog;
    this.byId = new Map(data.cards.map((card) => [card.id, card]));
    this.wipe = byId("wipe");
    this.stage = byId("stage");
    this.sides = { left: byId("left"), right: byId("right") };
    this.#listen();
  }

  // Opens what the address names, and closes where it names no pair.
  follow(fragment) {
    const named = new URLSearchParams(fragment.replace(/^#/, ""));
    byId("unknown").hidden = true;
    if (!named.has("pair")) {
      this.dialog.close();
      return;
    }
    const card = this.byId.get(named.get("pair"));
    if (card === undefined) {
      this.dialog.close();
      byId("unknown").hidden = false;
      byId("unknown").scrollIntoView();
      return;
    }
    this.#open(card, named.get("left"), named.get("right"));
  }

  step(by) {
    const cards = this.gallery.cards;
    const next = cards[cards.indexOf(this.#card) + by];
    if (next !== undefined) {
      this.#open(next, this.sides.left.value, this.sides.right.value);
      history.replaceState(null, "", this.#address());
    }
  }

  #listen() {
    const { left, right } = this.sides;
    for (const side of [left, right]) {
      side.replaceChildren(...this.data.methods.map((method) => element("option", {}, method)));
      side.disabled = this.data.methods.length < 2;
      side.addEventListener("change", () => {
        this.#draw();
        history.replaceState(null, "", this.#address());
      });
    }
    this.wipe.addEventListener("input", () => this.#setWipe(Number(this.wipe.value)));
    this.stage.addEventListener("pointerdown", (event) => {
      this.stage.setPointerCapture(event.pointerId);
      this.#wipeTo(event);
    });
    this.stage.addEventListener("pointermove", (event) => event.buttons && this.#wipeTo(event));
    byId("previous").addEventListener("click", () => this.step(-1));
    byId("next").addEventListener("click", () => this.step(1));
    byId("close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => this.#key(event));
    this.dialog.addEventListener("close", () => this.#closed());
  }

  #open(card, left, right) {
    const methods = this.data.methods;
    this.#card = card;
    this.sides.left.value = methods.includes(left) ? left : methods[0];
    this.sides.right.value = methods.includes(right) ? right : (methods[1] ?? methods[0]);
    this.#draw();
    if (!this.dialog.open) {
      this.dialog.showModal();
      byId("viewer-title").focus();
    }
  }

  #draw() {
    const card = this.#card;
    const size = this.data.sizes[card.size];
    const place = this.gallery.cards.indexOf(card);
    byId("viewer-title").textContent = card.prompt;
    byId("viewer-about").textContent =
      `${size.label}, seed ${card.seed}${size.control ? ", control: N = T" : ""}; ` +
      (place < 0 ? "not among the pairs that are shown" : `${place + 1} of ${this.gallery.cards.length}`);
    byId("previous").disabled = place <= 0;
    byId("next").disabled = place + 1 >= this.gallery.cards.length;
    byId("permalink").href = this.#address();
    this.stage.style.setProperty("--wide", size.width);
    this.stage.style.setProperty("--high", size.height);
    const steps = Math.floor(640 / Math.max(size.width, size.height));
    this.stage.style.setProperty("--enlarged", Math.max(1, steps));
    this.stage.classList.toggle("pixels", steps > 1);
    for (const [side, chosen] of Object.entries(this.sides)) {
      this.#drawSide(side, card.pictures.find((picture) => picture.method === chosen.value));
    }
    this.#setWipe(50);
  }

  // The thumbnail at once and the picture itself when it is there; the thumbnail alone in a page without its run.
  #drawSide(side, picture) {
    const image = byId(`${side}-image`);
    const note = byId(`${side}-note`);
    const original = byId(`${side}-original`);
    const isDrawn = picture.state === "drawn";
    image.hidden = !isDrawn;
    byId(`${side}-hole`).hidden = isDrawn;
    original.hidden = !isDrawn;
    note.textContent = picture.note;
    note.className = noteClass(picture);
    if (!isDrawn) {
      image.removeAttribute("src");
      return;
    }
    image.src = picture.thumbnail;
    image.alt = alternative(this.#card, picture);
    original.href = picture.file;
    const loaded = new Image();
    const isStill = () => image.src === picture.thumbnail;
    loaded.addEventListener("load", () => isStill() && (image.src = picture.file));
    loaded.addEventListener("error", () => {
      if (isStill()) {
        original.hidden = true;
        note.textContent = [picture.note, "a thumbnail: the picture itself is not beside this page"]
          .filter(Boolean)
          .join("; ");
      }
    });
    loaded.src = picture.file;
  }

  #address() {
    return pairFragment(this.#card, this.sides.left.value, this.sides.right.value);
  }

  #wipeTo(event) {
    const box = this.stage.getBoundingClientRect();
    this.#setWipe((100 * (event.clientX - box.left)) / box.width);
  }

  #setWipe(share) {
    this.wipe.value = Math.min(100, Math.max(0, share));
    this.stage.style.setProperty("--wipe", `${this.wipe.value}%`);
  }

  // Left and right step through the pairs, but move the slider where it has the focus.
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) {
      return;
    }
    const onSlider = event.target === this.wipe;
    const wiped = Number(this.wipe.value);
    const actions = {
      j: () => this.step(1),
      k: () => this.step(-1),
      ArrowRight: onSlider ? undefined : () => this.step(1),
      ArrowLeft: onSlider ? undefined : () => this.step(-1),
      ArrowUp: onSlider ? undefined : () => this.#setWipe(wiped + WIPE_STEP),
      ArrowDown: onSlider ? undefined : () => this.#setWipe(wiped - WIPE_STEP),
      f: () => this.#setWipe(wiped < 50 ? 100 : 0),
    };
    if (actions[event.key] !== undefined) {
      event.preventDefault();
      actions[event.key]();
    }
  }

  #closed() {
    if (location.hash.startsWith("#pair=")) {
      history.replaceState(null, "", "#pairs");
    }
    this.gallery.focus(this.#card);
  }
}
