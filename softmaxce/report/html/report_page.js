// The gallery by class, and the table of all predictions: filtered, sorted, a hundred rows at a time.
"use strict";

const PAGE = 100;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const byId = (id) => document.getElementById(id);

// -- the gallery ------------------------------------------------------------------------------------------------------

function beginGallery(select) {
  const show = () => {
    for (const item of byId("gallery").children) {
      item.hidden = select.value === "" ? !("first" in item.dataset) : item.dataset.label !== select.value;
    }
  };
  select.addEventListener("change", show);
  show();
}

// -- the table --------------------------------------------------------------------------------------------------------

function beginTable(data) {
  const { classes, label, prediction, confidence, loss, files, links } = data;
  const names = new Intl.Collator(undefined, { numeric: true });
  const number = (digits) => (value) => (value === null ? "not finite" : value.toFixed(digits));
  const columns = [
    { name: "index", at: (i) => i, text: String },
    ...(files ? [{ name: "file", at: (i) => files[i], text: String }] : []),
    { name: "label", at: (i) => classes[label[i]], text: String },
    { name: "prediction", at: (i) => classes[prediction[i]], text: String },
    { name: "confidence", at: (i) => confidence[i], text: number(4), number: true },
    { name: "loss", at: (i) => loss[i], text: number(4), number: true },
  ];
  const all = label.map((_, i) => i);
  const state = { column: columns[0], down: false, page: 0 };
  let rows = all;

  for (const [id, ids] of [["filter-label", label], ["filter-prediction", prediction]]) {
    const counts = new Map();
    for (const k of ids) counts.set(k, (counts.get(k) ?? 0) + 1);
    byId(id).append(make("option", { value: "" }, "all"));
    classes.forEach((name, k) => byId(id).append(make("option", { value: k }, `${name} (${(counts.get(k) ?? 0).toLocaleString("en")})`)));
  }

  function compare(i, j) {
    const a = state.column.at(i), b = state.column.at(j);
    const order = typeof a === "string" ? names.compare(a, b) : (a ?? Infinity) - (b ?? Infinity) || 0;
    return (state.down ? -order : order) || i - j;
  }

  function update() {
    const labels = byId("filter-label").value, predictions = byId("filter-prediction").value;
    const result = byId("filter-result").value, text = byId("filter-text").value.trim().toLowerCase();
    rows = all.filter((i) =>
      (labels === "" || label[i] === Number(labels)) &&
      (predictions === "" || prediction[i] === Number(predictions)) &&
      (result === "" || (label[i] === prediction[i]) === (result === "correct")) &&
      (text === "" || String(i) === text || (files !== null && files[i].toLowerCase().includes(text))));
    rows.sort(compare);
    state.page = 0;
    draw();
  }

  function draw() {
    const start = state.page * PAGE, part = rows.slice(start, start + PAGE);
    byId("predictions-body").replaceChildren(...part.map((i) => {
      const cells = columns.map((column) => {
        const text = column.text(column.at(i));
        const content = column.name === "index" && i in links ? make("a", { href: links[i], title: "step by step" }, text) : text;
        const kinds = [column.name, ...(column.number ? ["number"] : []), ...(column.name === "file" ? ["faint"] : [])];
        return make("td", { class: kinds.join(" ") }, content);
      });
      return make("tr", { class: label[i] === prediction[i] ? "correct" : "wrong" }, ...cells);
    }));
    const count = (value) => value.toLocaleString("en");
    const range = rows.length > PAGE ? `, shown: ${count(start + 1)} to ${count(start + part.length)}` : "";
    byId("predictions-status").textContent = `${count(rows.length)} of ${count(all.length)} images${range}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = start + PAGE >= rows.length;
    for (const column of columns) {
      const sorted = column === state.column ? (state.down ? "descending" : "ascending") : "none";
      column.head.setAttribute("aria-sort", sorted);
      column.mark.textContent = { ascending: " ▲", descending: " ▼", none: "" }[sorted];
    }
  }

  for (const column of columns) {
    column.mark = make("span", { "aria-hidden": "true" });
    const button = make("button", { type: "button" }, column.name, column.mark);
    button.addEventListener("click", () => {
      state.down = state.column === column ? !state.down : column.name === "confidence" || column.name === "loss";
      state.column = column;
      update();
    });
    column.head = make("th", { scope: "col", ...(column.number ? { class: "number" } : {}) }, button);
    byId("predictions-head").append(column.head);
  }
  for (const id of ["filter-label", "filter-prediction", "filter-result"]) byId(id).addEventListener("change", update);
  byId("filter-text").addEventListener("input", update);
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    byId(id).addEventListener("click", () => { state.page += step; draw(); });
  }
  update();
}

for (const element of document.querySelectorAll("[data-script]")) element.hidden = false;
if (byId("gallery-class")) beginGallery(byId("gallery-class"));
if (byId("data")) beginTable(JSON.parse(byId("data").textContent));
