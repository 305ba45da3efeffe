"use strict";
// A click on a head sorts best first, the next one the other way round, the third as it was.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => row.cells[column].dataset.order ?? row.cells[column].textContent;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const numbers = "first" in head.dataset;
    const first = head.dataset.first ?? "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = now === null ? first : now === first ? second : null;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      table.classList.toggle("sorted", next !== null);
      const done = () => document.dispatchEvent(new CustomEvent("sorted", { detail: [...body.rows] }));
      if (next === null) { body.append(...original); done(); return; }
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const left = key(a, column), right = key(b, column);
        // What has no figure stays at the end, either way.
        if (left === "" || right === "") return (left === "") - (right === "");
        return sign * (numbers ? left - right : left.localeCompare(right));
      };
      body.append(...[...original].sort(compare));
      done();
    });
  });
}
