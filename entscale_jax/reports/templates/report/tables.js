// Tables that sort by a click on a column's head. Sizes that stand once for several rows are written into each first.

function startTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("thead th").forEach((head, column) => addSorting(table, head, column));
  }
}

function addSorting(table, head, column) {
  const button = element("button", { type: "button", className: "sort" }, ...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    sortRows(table, column, descending);
  });
}

function sortRows(table, column, descending) {
  const rows = ungrouped(table).map((row) => [sortKey(row.cells[column]), row]);
  rows.sort(([one], [other]) => compareKeys(one, other, descending));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

// The rows of all bodies in one, each with all its cells.
function ungrouped(table) {
  const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
  for (const row of rows) {
    for (const cell of [...row.cells].filter((one) => one.rowSpan > 1)) {
      let below = row;
      for (let more = cell.rowSpan - 1; more > 0; more -= 1) {
        below = below.nextElementSibling;
        const copy = cell.cloneNode(true);
        copy.removeAttribute("rowspan");
        below.insertBefore(copy, below.cells[cell.cellIndex] ?? null);
      }
      cell.removeAttribute("rowspan");
    }
  }
  const [first, ...others] = table.tBodies;
  first.append(...rows);
  others.forEach((body) => body.remove());
  return rows;
}

// A number, a size as its pixels, or a text; null where there is nothing.
function sortKey(cell) {
  const text = cell.textContent.trim().replaceAll("−", "-").replaceAll(",", "");
  if (text === "" || text === "-") {
    return null;
  }
  const size = /(?:^|\s)(\d+)x(\d+)\b/.exec(text);
  if (size && !cell.classList.contains("text")) {
    return size[1] * size[2];
  }
  const number = Number.parseFloat(text);
  return Number.isNaN(number) || cell.classList.contains("text") ? text : number;
}

function compareKeys(one, other, descending) {
  if (one === null || other === null) {
    return (one === null) - (other === null);
  }
  const order =
    typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
  return descending ? -order : order;
}
