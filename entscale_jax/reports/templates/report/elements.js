// Elements of the page. Every text is set as text, so that a caption of markup stays a caption.

function byId(id) {
  return document.getElementById(id);
}

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function isTyping(target) {
  return target.matches("input:not([type=range], [type=checkbox]), select, textarea");
}
