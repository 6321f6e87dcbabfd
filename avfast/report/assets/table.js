// A table that is sorted by the column whose head is clicked.
"use strict";

document.addEventListener("alpine:init", () => {
  Alpine.data("table", () => ({
    rows: JSON.parse(document.getElementById("rows").textContent),
    by: null,
    falling: true,

    get columns() { return Object.keys(this.rows[0] ?? {}); },
    get sorted() {
      if (this.by === null) return this.rows;
      const order = (a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b)));
      const rows = [...this.rows].sort((a, b) => order(a[this.by], b[this.by]));
      return this.falling ? rows.reverse() : rows;
    },
    sort(column) {
      this.falling = column === this.by ? !this.falling : typeof this.rows[0]?.[column] === "number";
      this.by = column;
    },
    show(value, column) { return column === "clips" || typeof value !== "number" ? value : value.toFixed(3); },
  }));
});
