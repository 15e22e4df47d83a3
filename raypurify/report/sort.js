// Makes the tables of the class "sortable" sortable by their columns. Without it they stand as they were written.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const written = [...body.rows];
  const heads = [];
  // Where each heading of one column stands, counted through headings over several rows or columns.
  [...table.tHead.rows].forEach((row, line) => {
    let column = 0;
    for (const cell of row.cells) {
      while (heads.some((head) => head.lines.has(line) && head.first <= column && column < head.first + head.columns)) {
        column += 1;
      }
      const lines = new Set(Array.from({ length: cell.rowSpan }, (_, index) => line + index));
      heads.push({ cell, first: column, columns: cell.colSpan, lines });
      column += cell.colSpan;
    }
  });
  const cellAt = (row, column) => {
    let passed = 0;
    for (const cell of row.cells) {
      passed += cell.colSpan;
      if (column < passed) return cell;
    }
    return null;
  };
  // A cell's first line is its value: small print may stand below it.
  const valueAt = (row, column) => {
    const cell = cellAt(row, column);
    const text = cell ? cell.innerText.trim().split("\n")[0] : "";
    const number = Number.parseFloat(text.replace("−", "-").replace("+", "").replaceAll(",", ""));
    return Number.isNaN(number) ? text : number;
  };
  const isAbsent = (value) => value === "" || value === "–";
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  const columns = heads.filter((head) => head.columns === 1);
  for (const { cell, first } of columns) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const next = { none: "descending", descending: "ascending", ascending: "none" }[cell.ariaSort ?? "none"];
      for (const other of columns) other.cell.ariaSort = null;
      cell.ariaSort = next === "none" ? null : next;
      const keyed = written.map((row) => [row, valueAt(row, first)]);
      const [known, absent] = [false, true].map((wanted) => keyed.filter(([, value]) => isAbsent(value) === wanted));
      if (next !== "none") known.sort(([, a], [, b]) => (next === "ascending" ? compare(a, b) : compare(b, a)));
      body.append(...(next === "none" ? written : [...known, ...absent].map(([row]) => row)));
    });
  }
}
