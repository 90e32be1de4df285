"use strict";
// Sorting by a click on a heading, and a search box that hides the rows without the word.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const heading = button.closest("th");
    const column = heading.cellIndex;
    const falls = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = heading.classList.contains("number")
      ? (a, b) => Number(value(a)) - Number(value(b))
      : (a, b) => value(a).localeCompare(value(b), undefined, { numeric: true });
    const rows = [...body.rows].sort(compare);
    if (falls) rows.reverse();
    body.append(...rows);
  });
}
for (const box of document.querySelectorAll("input[data-table]")) {
  const body = document.getElementById(box.dataset.table).tBodies[0];
  const count = document.getElementById(box.dataset.count);
  box.addEventListener("input", () => {
    const word = box.value.trim().toLocaleLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !row.textContent.toLocaleLowerCase().includes(word);
      if (!row.hidden) shown += 1;
    }
    count.textContent = word ? `${shown} of ${body.rows.length}` : "";
  });
}
