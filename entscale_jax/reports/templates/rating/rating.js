// The rating page: one picture at a time. A score is kept by the server before the next picture is asked for.

const LEAST = 1;
const MOST = 10;
const SETTLE = 250; // Milliseconds after a picture appears in which a second press of the last score does nothing.

class Rating {
  #state = null;
  #isOpen = false;
  #skipped = new Set();

  constructor() {
    for (let score = LEAST; score <= MOST; score += 1) {
      const button = element("button", { type: "button", value: score }, String(score));
      button.addEventListener("click", () => this.#rate(score));
      byId("scores").append(button);
    }
    byId("back").addEventListener("click", () => this.#back());
    byId("skip").addEventListener("click", () => this.#skip());
    byId("picture").addEventListener("load", () => this.#shown());
    byId("picture").addEventListener("error", () => this.#broken());
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  async start(rater) {
    this.rater = rater;
    await this.#go();
  }

  // To `at`, a place in the order, or to the first picture without a score: the first of all, or `from` a place on.
  async #go(where = {}) {
    const query = new URLSearchParams({ rater: this.rater, ...where });
    await this.#show(() => ask(`state?${query}`), where.at !== undefined);
  }

  async #rate(score) {
    if (!this.#isOpen) {
      return;
    }
    const { key } = this.#state.item;
    await this.#show(() =>
      ask("answer", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ rater: this.rater, key, score }),
      }),
    );
  }

  // Shows the answer to a request; the picture stays and can be rated again where there was none.
  async #show(request, isChosen = false) {
    this.#close();
    try {
      this.#state = await request();
      byId("trouble").textContent = "";
    } catch (error) {
      this.#fail(error);
      return;
    }
    this.#draw(isChosen);
  }

  #fail(error) {
    const isBegun = this.#state !== null;
    byId("trouble").textContent = isBegun
      ? `${error.message} What was rated before is kept: rate this picture again.`
      : error.message;
    byId("start").hidden = isBegun;
    this.#open();
  }

  #draw(isChosen) {
    const { done, total, place, item } = this.#state;
    byId("start").hidden = true;
    byId("item").hidden = item === null;
    byId("end").hidden = item !== null;
    byId("progress").hidden = false;
    byId("progress").textContent = item === null ? `${done} of ${total} rated` : `Picture ${place + 1} of ${total}, ${done} rated`;
    byId("bar").hidden = false;
    byId("bar").max = total;
    byId("bar").value = done;
    byId("back").disabled = place === 0;
    byId("back-from-end").disabled = place === 0;
    byId("skip").hidden = true;
    byId("picture").removeAttribute("src");
    if (item === null) {
      return;
    }
    if (this.#skipped.has(item.key) && !isChosen) {
      this.#go({ from: place + 1 });
      return;
    }
    byId("caption").textContent = item.caption;
    window.scrollTo(0, 0);
    for (const button of byId("scores").children) {
      button.ariaPressed = Number(button.value) === item.score;
    }
    byId("picture").src = `picture?${new URLSearchParams({ rater: this.rater, key: item.key })}`;
  }

  #shown() {
    const picture = byId("picture");
    const steps = Math.max(1, Math.floor(384 / Math.max(picture.naturalWidth, picture.naturalHeight)));
    picture.style.width = `${steps * picture.naturalWidth}px`;
    picture.classList.toggle("pixels", steps > 1);
    const key = this.#state.item.key;
    setTimeout(() => this.#state.item?.key === key && this.#open(), SETTLE);
  }

  #broken() {
    byId("trouble").textContent = "This picture can't be shown.";
    byId("skip").hidden = false;
  }

  #skip() {
    this.#skipped.add(this.#state.item.key);
    this.#go({ from: this.#state.place + 1 });
  }

  #back() {
    if (this.#state !== null && this.#state.place > 0) {
      this.#go({ at: this.#state.place - 1 });
    }
  }

  #open() {
    this.#isOpen = this.#state?.item != null;
    byId("scores").disabled = !this.#isOpen;
  }

  #close() {
    this.#isOpen = false;
    byId("scores").disabled = true;
  }

  #key(event) {
    if (isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey || event.repeat) {
      return;
    }
    if (/^[0-9]$/.test(event.key)) {
      event.preventDefault();
      this.#rate(event.key === "0" ? MOST : Number(event.key));
    } else if (event.key === "Backspace" || event.key === "ArrowLeft") {
      event.preventDefault();
      this.#back();
    }
  }
}

async function ask(address, request) {
  let answer;
  let values;
  try {
    answer = await fetch(address, request);
    values = await answer.json();
  } catch {
    throw new Error("The server can't be reached.");
  }
  if (!answer.ok) {
    throw new Error(`${values.error}.`);
  }
  return values;
}

function start() {
  const { only } = JSON.parse(byId("settings").textContent);
  const rating = new Rating();
  const begin = (rater) => {
    history.replaceState(null, "", `?${new URLSearchParams({ rater })}`);
    rating.start(rater);
  };
  const named = only ?? new URLSearchParams(location.search).get("rater");
  byId("back-from-end").addEventListener("click", () => byId("back").click());
  byId("start").addEventListener("submit", (event) => {
    event.preventDefault();
    begin(byId("rater").value);
  });
  if (named) {
    begin(named);
  } else {
    byId("start").hidden = false;
    byId("rater").focus();
  }
}

start();
