// Light, dark, or as the system has it, kept for the next visit where the browser lets a file keep anything.

const THEMES = ["system", "light", "dark"];

function remembered() {
  try {
    return localStorage.getItem("entscale-theme");
  } catch {
    return null;
  }
}

function startTheme(button) {
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    show(next);
    try {
      localStorage.setItem("entscale-theme", next);
    } catch {
      // Nothing is kept: the choice holds for this visit.
    }
  });
  show(THEMES.includes(remembered()) ? remembered() : "system");
}
