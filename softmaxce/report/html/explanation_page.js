// The computations of softmaxce/explain/steps.py and numerics.py in the browser, and their display.
// One file of more than 400 lines, because it is inlined in the page as one script.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const K = data.classes.length;

// -- the numbers ------------------------------------------------------------------------------------------------------

const sum = (values) => values.reduce((total, value) => total + value, 0);
const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

/** For each i the sum of all values but the i-th; for the largest it is summed without it, not subtracted. */
function without(values) {
  const total = sum(values), largest = argmax(values);
  return values.map((value, i) => (i === largest ? sum(values.filter((_, j) => j !== i)) : total - value));
}

function softmax(z) {
  const exponentials = z.map((value) => Math.exp(value - Math.max(...z)));
  return exponentials.map((value) => value / sum(exponentials));
}

function logSoftmax(z) {
  const shifted = z.map((value) => value - Math.max(...z));
  const rest = without(shifted.map(Math.exp))[argmax(z)];
  return shifted.map((value) => value - Math.log1p(rest));
}

const termsOf = (q, logS) => q.map((target, i) => (target === 0 ? 0 : -target * logS[i]));

/** Every step, with the names of --json. */
function takeSteps(rawLogits, label, smoothing, weight, temperature) {
  const z = rawLogits.map((value) => value / temperature);
  const largest = Math.max(...z);
  const shifted = z.map((value) => value - largest);
  const exponentials = shifted.map(Math.exp);
  const exponentialSum = sum(exponentials);
  const probabilities = softmax(z), logProbabilities = logSoftmax(z);
  const smoothed = label.map((entry) => entry * (1 - smoothing) + (sum(label) * smoothing) / K);
  const targets = weight ? smoothed.map((entry, i) => entry * weight[i]) : smoothed;
  const total = sum(targets);
  const terms = termsOf(targets, logProbabilities);
  const others = without(targets), rest = without(exponentials);
  const gradient = z.map((_, i) => probabilities[i] * others[i] - (targets[i] * rest[i]) / exponentialSum);
  const size = weight && total > 0 ? 1 / total : 1;
  const moved = z.map((value, i) => value - size * gradient[i]);
  const main = argmax(label);
  return {
    raw_logits: rawLogits, temperature, logits: z, largest, shifted, exponentials, exponential_sum: exponentialSum,
    probabilities, log_probabilities: logProbabilities, label, label_smoothing: smoothing, smoothed, weight, targets,
    terms, main, loss: sum(terms), bits: sum(terms) / Math.LN2, gradient, total,
    least_at: targets.map((q) => (total > 0 ? q / total : q)),
    least: Math.abs(sum(targets.map((q) => (q > 0 ? -q * Math.log(q / total) : 0)))),
    step: { size, logits: moved, probabilities: softmax(moved), loss: sum(termsOf(targets, logSoftmax(moved))) },
    main_probability: probabilities[main],
  };
}

// -- floating-point formats: the result of each operation is rounded to the format -----------------------------------

function toBfloat16(value) {
  const float = new Float32Array([value]), bits = new Uint32Array(float.buffer);
  if (Number.isFinite(value)) bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
  return float[0];
}

function toFloat16(value) {
  const float = Math.fround(value), size = Math.abs(float);
  if (!Number.isFinite(float) || size === 0) return float;
  let exponent = Math.floor(Math.log2(size));
  while (2 ** (exponent + 1) <= size) exponent += 1;
  while (2 ** exponent > size) exponent -= 1;
  const unit = 2 ** (Math.max(exponent, -14) - 10);
  let count = Math.floor(size / unit);
  const left = size / unit - count;
  if (left > 0.5 || (left === 0.5 && count % 2 === 1)) count += 1;
  const rounded = count * unit > 65504 ? Infinity : count * unit;
  return float < 0 ? -rounded : rounded;
}

const FORMATS = { float64: (value) => value, float32: Math.fround, bfloat16: toBfloat16, float16: toFloat16 };

/** -sum Q log S by softmax and then log, every operation rounded; classes with target 0 are left out. */
function naiveLoss(z, q, round, add) {
  const largest = Math.max(...z);
  const exponentials = z.map((value) => round(Math.exp(round(value - largest))));
  const total = round(exponentials.reduce((a, b) => add(a + b), 0));
  const terms = z.map((_, i) => (q[i] > 0 ? round(q[i] * round(Math.log(round(exponentials[i] / total)))) : 0));
  return -round(terms.reduce((a, b) => add(a + b), 0));
}

/** The same with the log in one step, as cross_entropy computes it; 16-bit formats are rounded once, at the end. */
function rightLoss(z, q, round, add) {
  const largest = Math.max(...z), main = argmax(q);
  const shifted = z.map((value) => add(value - largest));
  const rest = shifted.reduce((total, value, i) => (i === main ? total : add(total + add(Math.exp(value)))), 0);
  const logSum = add(Math.log1p(add(rest + add(Math.expm1(shifted[main])))));
  const product = shifted.reduce((total, value, i) => (q[i] === 0 ? total : add(total + add(q[i] * value))), 0);
  return round(add(add(q.reduce((a, b) => add(a + b), 0)) * logSum) - product);
}

function formatsOf(steps) {
  return Object.entries(FORMATS).map(([format, round]) => {
    const add = format === "float64" ? round : Math.fround; // sums of 16-bit numbers are accumulated in float32
    const z = steps.logits.map(round), q = steps.targets.map(round);
    return { format, naive: naiveLoss(z, q, round, add), right: rightLoss(z, q, round, add) };
  });
}

// -- numbers as text --------------------------------------------------------------------------------------------------

function num(value) {
  if (!Number.isFinite(value)) return value > 0 ? "inf" : Number.isNaN(value) ? "nan" : "-inf";
  const size = Math.abs(value);
  if (size === 0 || (size >= 1e-3 && size < 1e6)) return value.toFixed(4);
  return value.toExponential(3).replace(/e([+-])(\d)$/, "e$10$2");
}

const AS = {
  num,
  signed: (value) => (Math.abs(value) < 1e-15 ? "0.0000" : (value > 0 ? "+" : "") + num(value)),
  label: (value) => (value === 0 || value === 1 ? String(value) : num(value)),
  percent: (value) => `${(100 * value).toFixed(2)} %`,
  full: (value) => (value === 0 ? "0" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e4 ? value.toFixed(8) : Number.isFinite(value) ? value.toExponential(7) : num(value)),
  difference: (value) => (value === 0 ? "0" : Number.isFinite(value) ? value.toExponential(1) : num(value)),
};

/** Fills a <data> element: the rounded number as text, all its digits in `value`. */
function show(element, value, as = "num") {
  element.value = String(value);
  element.textContent = AS[as](value);
}

// -- tables -----------------------------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const shown = data.shown;
const hiddenClasses = data.classes.map((_, i) => i).filter((i) => !shown.includes(i));
const updates = []; // callbacks for new steps

const at = (steps, key) => key.split(".").reduce((value, name) => value[name], steps);

/** A column of numbers: key of the steps, heading, form; `total`: show the sum below it. */
const column = (key, heading, as = "num", total = false) => ({ key, heading, as, total });
const bar = (key, low, high) => ({ key, heading: "", bar: true, low, high });
const remark = (text) => ({ heading: "", remark: text });

const TABLES = {
  raw_logits: [
    column("raw_logits", "z"),
    bar("raw_logits", (v) => Math.min(0, ...v), (v) => Math.max(0, ...v)),
  ],
  logits: [column("logits", "z")],
  shifted: [column("shifted", "z - largest")],
  exponentials: [column("exponentials", "exp", "num", true), bar("exponentials", () => 0, () => 1)],
  probabilities: [
    column("probabilities", "S", "num", true),
    column("probabilities", "", "percent", true),
    bar("probabilities", () => 0, () => 1),
  ],
  label: [
    column("label", "L", "label"),
    { ...column("smoothed", "smoothed", "label"), visible: (steps) => steps.label_smoothing > 0 },
    ...(data.weight ? [column("weight", "weight"), column("targets", "Q", "label")] : []),
  ],
  terms: [
    column("targets", data.weight ? "Q" : "L", "label"),
    column("log_probabilities", "log S"),
    column("terms", data.weight ? "-Q log S" : "-L log S", "num", true),
    remark((steps, i) => (steps.targets[i] > 0 ? "" : "is 0")),
  ],
  gradient: [
    column("probabilities", "S"),
    column("targets", data.weight ? "Q" : "L", "label"),
    column("gradient", "gradient", "signed", true),
    remark((steps, i) => (steps.gradient[i] < 0 ? "raise z ▲" : steps.gradient[i] > 0 ? "lower z ▼" : "keep z")),
  ],
  step: [
    column("logits", "z"),
    column("step.logits", "z after"),
    column("probabilities", "S", "percent", true),
    column("step.probabilities", "S after", "percent", true),
  ],
};

/** Hides a column's cell while the column is not visible. */
function hideable(c, cell) {
  if (c.visible) updates.push((steps) => (cell.hidden = !c.visible(steps)));
  return cell;
}

function fillTable(table, name) {
  const columns = TABLES[name];
  const headings = columns.map((c) => hideable(c, make("th", { scope: "col" }, c.heading)));
  const body = make("tbody");
  table.append(make("thead", {}, make("tr", {}, make("th", { scope: "col" }, ""), ...headings)), body);
  for (const i of shown) body.append(classRow(name, columns, i));
  const totals = columns.some((c) => c.total);
  if (totals && hiddenClasses.length) {
    body.append(totalRow("others", `${hiddenClasses.length} others`, columns, (v) => sum(hiddenClasses.map((i) => v[i]))));
  }
  if (totals) body.append(totalRow("total", "sum", columns, sum));
}

function classRow(name, columns, i) {
  const row = make("tr", {}, make("th", { scope: "row", title: data.classes[i] }, data.classes[i]));
  updates.push((steps) => {
    row.classList.toggle("is-label", steps.label[i] > 0 && steps.label[i] === Math.max(...steps.label));
    if (name !== "terms") return;
    row.classList.toggle("zero", steps.targets[i] === 0);
    row.classList.toggle("highlighted", steps.targets[i] > 0 && i === steps.main);
  });
  for (const c of columns) {
    if (c.bar) row.append(barCell(c, i));
    else if (c.remark) {
      const cell = make("td", { class: "word" });
      updates.push((steps) => {
        cell.textContent = c.remark(steps, i);
        cell.className = `word ${cell.textContent.includes("▲") ? "up" : cell.textContent.includes("▼") ? "down" : ""}`;
      });
      row.append(cell);
    } else {
      const number = make("data", { "data-of": name, "data-column": c.key, "data-class": i });
      updates.push((steps) => show(number, at(steps, c.key)[i], c.as));
      row.append(hideable(c, make("td", {}, number)));
    }
  }
  return row;
}

function barCell(c, i) {
  const fill = make("i"), zero = make("b"), track = make("span", { class: "track" }, fill, zero);
  updates.push((steps) => {
    const values = at(steps, c.key), low = c.low(values), high = c.high(values), span = high - low || 1;
    const from = (Math.min(values[i], 0) - low) / span, to = (Math.max(values[i], 0) - low) / span;
    fill.style.left = `${100 * from}%`;
    fill.style.width = `${100 * (to - from)}%`;
    zero.style.left = `${(100 * -low) / span}%`;
    zero.hidden = low === 0;
  });
  return make("td", { class: "bar", "aria-hidden": "true" }, track);
}

function totalRow(kind, title, columns, combine) {
  const row = make("tr", { class: kind }, make("th", { scope: "row" }, title));
  for (const c of columns) {
    if (!c.total) {
      row.append(make("td"));
      continue;
    }
    const number = make("data");
    updates.push((steps) => show(number, combine(at(steps, c.key)), c.as));
    row.append(make("td", {}, number));
  }
  return row;
}

// -- sentences --------------------------------------------------------------------------------------------------------

const Q = data.weight ? "Q" : "L";

/** Whether the loss is -log S of one class. */
const hasOneTerm = (steps) => !data.weight && steps.targets.filter((target) => target > 0).length === 1;

/** The least loss for these targets, and the probabilities that have it. */
function minimum(steps) {
  if (steps.total === 0) return "All Q are 0, so it is 0 whatever S is.";
  const entries = shown.map((i) => `${data.names[i]}: ${AS.label(steps.least_at[i])}`).join(", ");
  const where = data.weight
    ? `the weighted label Q / sum(Q) (${entries}${hiddenClasses.length ? ", ..." : ""})`
    : steps.label_smoothing ? "the smoothed label" : "the label";
  return `Its minimum is ${num(steps.least)}, reached when S equals ${where}.`;
}

const SENTENCES = {
  label_name: (steps) => data.names[steps.main],
  predicted_class: (steps) => data.names[argmax(steps.logits)],
  q: () => Q,
  total: (steps) => (data.weight ? `${num(steps.total)} ` : ""),
  label_sentence: (steps) => {
    const hard = Math.max(...steps.label) === 1;
    const first = hard
      ? `The label is ${data.names[steps.main]}. As a vector, it is 1 for the true class and 0 for all others, which is called one-hot.`
      : "It is a soft label: several classes have a probability, as for images mixed by mixup or CutMix.";
    const smooth = steps.label_smoothing
      ? ` Label smoothing distributes ${num(steps.label_smoothing)} of it evenly over all ${K} classes, so that the loss does not reward unlimited confidence.${data.weight ? "" : " From here on, L is the smoothed label."}`
      : "";
    const weighted = data.weight
      ? " Class weights make some classes count more than others: label times weight is Q, and Q replaces L from here on."
      : "";
    return first + smooth + weighted;
  },
  product_sentence: (steps) => {
    const left = steps.targets.filter((target) => target > 0).length;
    const rule =
      "The natural log of a probability is 0 at probability 1 and goes to minus infinity at probability 0; " +
      `the minus turns it into a penalty. The log of each class's S is multiplied by ${Q}. `;
    if (left === K) return `${rule}No ${Q} is 0, so every class contributes a term.`;
    if (left !== 1) return `${rule}Where ${Q} is 0 the term is 0; ${left} terms remain.`;
    return `${rule}Where ${Q} is 0 the term is 0, whatever S is; only the term of ${data.names[argmax(steps.targets)]} remains.`;
  },
  loss_sentence: (steps) => {
    const name = data.names[steps.main];
    const uniform = `Equal probabilities for all ${K} classes give log ${K} = ${num(Math.log(K))}.`;
    if (hasOneTerm(steps)) return `It is 0 at S(${name}) = 1, and grows without bound as S(${name}) nears 0. ${uniform}`;
    return `${minimum(steps)} ${name}, the label's largest entry, is marked on the curve.`;
  },
  change: (steps) => {
    const difference = steps.step.loss - steps.loss;
    if (Math.abs(difference) <= 1e-14 * steps.loss) return "does not change"; // it is rounded to about 16 digits
    return `${difference < 0 ? "falls" : "rises"} by ${num(Math.abs(difference))}`;
  },
  stable_formula: (steps) => {
    const formula = hasOneTerm(steps)
      ? "log(sum) - (z_y - largest)"
      : `sum(${Q}) log(sum) - the sum of ${Q} (z - largest)`;
    return `${formula}, with log(sum) computed as log1p(rest + expm1(z_y - largest)), where y is ` +
      `${data.names[argmax(steps.targets)]} and rest is the sum of the other classes' exp. ` +
      "log1p(x) is log(1 + x), and expm1(x) is exp(x) - 1, both accurate where x is near 0.";
  },
};

// -- the curve --------------------------------------------------------------------------------------------------------

const LEFT = 40, RIGHT = 520, TOP = 20, BOTTOM = 220, HIGHEST = 5;
const across = (probability) => LEFT + probability * (RIGHT - LEFT);
const down = (loss) => BOTTOM - (Math.min(loss, HIGHEST) / HIGHEST) * (BOTTOM - TOP);

function drawCurve(svg) {
  const lowest = Math.exp(-HIGHEST);
  const points = Array.from({ length: 241 }, (_, i) => lowest * (1 / lowest) ** (i / 240));
  svg.querySelector(".curve").setAttribute("d", `M${points.map((p) => `${across(p).toFixed(2)} ${down(-Math.log(p)).toFixed(2)}`).join("L")}`);
  updates.push((steps) => {
    const probability = steps.main_probability, loss = -steps.log_probabilities[steps.main];
    const x = across(probability), y = down(loss), name = `S(${data.names[steps.main]})`;
    const mark = svg.querySelector(".mark");
    mark.setAttribute("cx", x);
    mark.setAttribute("cy", y);
    svg.querySelector(".guide").setAttribute("d", `M${LEFT} ${y}H${x}V${BOTTOM}`);
    svg.querySelector(".abscissa").textContent = name.length > 40 ? `${name.slice(0, 39)}…` : name;
    const beyond = loss > HIGHEST ? ", outside the plot" : "";
    svg.querySelector(".reading").textContent = `-log ${num(probability)} = ${num(loss)}${beyond}`;
  });
}

// -- the controls ----------------------------------------------------------------------------------------------------

const start = () => ({
  logits: [...data.raw_logits], label: [...data.label], smoothing: data.label_smoothing, temperature: data.temperature,
});
let state = start();
let steps;

const span = Math.max(10, ...data.raw_logits.map(Math.abs)) * 1.5;
const stride = 10 ** Math.floor(Math.log10(span / 50));

function update() {
  steps = takeSteps(state.logits, state.label, state.smoothing, data.weight, state.temperature);
  for (const change of updates) change(steps);
}

function makeSlider(i) {
  const id = `logit${i}`, name = data.classes[i];
  const range = make("input", { type: "range", id, min: -Math.ceil(span), max: Math.ceil(span), step: stride });
  const number = make("input", { type: "number", step: "any", "aria-label": `${name}, as a number` });
  const row = make("div", { class: "logit" }, make("label", { for: id, title: name }, name), range, number);
  const move = (value) => {
    if (!Number.isFinite(value)) return;
    state.logits[i] = value;
    update();
  };
  range.addEventListener("input", () => move(range.valueAsNumber));
  number.addEventListener("input", () => move(number.valueAsNumber));
  updates.push(() => {
    const value = state.logits[i];
    if (document.activeElement !== range) range.value = value;
    if (document.activeElement !== number) number.value = Number(value.toPrecision(4));
    range.setAttribute("aria-valuetext", num(value));
    row.classList.toggle("is-label", steps.label[i] > 0 && steps.label[i] === Math.max(...steps.label));
  });
  return row;
}

function begin() {
  for (const i of shown) document.getElementById("sliders").append(makeSlider(i));
  for (const table of document.querySelectorAll("[data-table]")) fillTable(table, table.dataset.table);
  for (const element of document.querySelectorAll("data[data-key]")) {
    updates.push((now) => show(element, at(now, element.dataset.key), element.dataset.as));
  }
  for (const element of document.querySelectorAll("[data-text]")) {
    updates.push((now) => (element.textContent = SENTENCES[element.dataset.text](now)));
  }
  updates.push((now) => (document.getElementById("temperature-section").hidden = now.temperature === 1));
  const headings = [...document.querySelectorAll(".steps > section > h2")];
  const numbers = headings.map(() => make("i"));
  headings.forEach((heading, i) => heading.prepend(numbers[i], " "));
  updates.push(() => { // the sections that are hidden have no number
    let count = 0;
    headings.forEach((heading, i) => { if (!heading.parentElement.hidden) numbers[i].textContent = ++count; });
  });
  drawCurve(document.getElementById("curve"));

  const formats = document.getElementById("formats");
  for (const format of Object.keys(FORMATS)) {
    const cells = ["naive", "right", "difference"].map((which) => make("data", { "data-format": format, "data-which": which }));
    const lost = make("td", { class: "word" });
    formats.append(make("tr", {}, make("th", { scope: "row" }, format), ...cells.map((cell) => make("td", {}, cell)), lost));
    updates.push((now) => {
      const { naive, right } = formatsOf(now).find((entry) => entry.format === format);
      show(cells[0], naive, "full");
      show(cells[1], right, "full");
      show(cells[2], Math.abs(naive - right), "difference");
      const which = right === 0 ? "both rounded to 0" : naive === 0 ? "naive: rounded to 0" : "";
      lost.textContent = now.total > 0 ? which : ""; // the exact loss is above 0 unless all Q are 0
      cells[0].classList.toggle("infinite", !Number.isFinite(naive));
    });
  }

  const label = document.getElementById("label");
  if (Math.max(...data.label) !== 1) label.append(make("option", { value: "given" }, "as given"));
  data.classes.forEach((name, i) => label.append(make("option", { value: i }, name)));
  label.addEventListener("change", () => {
    state.label = label.value === "given" ? [...data.label] : data.classes.map((_, i) => Number(i === Number(label.value)));
    update();
  });
  const smoothing = document.getElementById("smoothing"), temperature = document.getElementById("temperature");
  smoothing.addEventListener("input", () => { state.smoothing = smoothing.valueAsNumber; update(); });
  temperature.addEventListener("input", () => { state.temperature = temperature.valueAsNumber; update(); });

  const setControls = () => {
    label.value = Math.max(...state.label) === 1 ? argmax(state.label) : "given";
    smoothing.value = state.smoothing;
    temperature.value = state.temperature;
    update();
  };
  document.getElementById("step").addEventListener("click", () => {
    state.logits = steps.step.logits.map((value) => value * state.temperature);
    update();
  });
  document.getElementById("reset").addEventListener("click", () => { state = start(); setControls(); });
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("page").hidden = false;
  setControls();
}

begin();
