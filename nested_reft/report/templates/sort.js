// A click on the head of a column sorts its table; a second click reverses the order. Missing values come last.
for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const direction = head.ariaSort === "ascending" ? -1 : 1;
    for (const other of head.parentElement.cells) other.ariaSort = null;
    head.ariaSort = direction > 0 ? "ascending" : "descending";
    const order = (row) => row.cells[head.cellIndex].dataset.order ?? row.cells[head.cellIndex].textContent;
    const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    const missingLast = (a, b) => (a === "" || b === "" ? (a === "") - (b === "") : direction * compare(a, b));
    body.append(...[...body.rows].sort((one, two) => missingLast(order(one), order(two))));
  });
