// An image is drawn, chosen, dropped or pasted, and sent to /predict and /explain.
"use strict";

const { is_dark } = JSON.parse(document.getElementById("data").textContent);
const [PAPER, INK] = is_dark ? ["black", "white"] : ["white", "black"];
const TOP = 10; // classes that are listed

const get = (id) => document.getElementById(id);
const pad = get("pad"), context = pad.getContext("2d"), photo = get("photo"), frame = get("explanation");

function say(text, isError = false) {
  get("message").textContent = text;
  get("message").classList.toggle("error", isError);
}

// -- the server -------------------------------------------------------------------------------------------------------

let turns = 0; // requests so far: the answer to an earlier one than the last is not shown

async function post(address, image) {
  const answer = await fetch(address, { method: "POST", body: image });
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

function begin() {
  say("…");
  return (turns += 1);
}

async function classify(image, turn) {
  try {
    const [predicted, explained] = await Promise.all([post(`predict?top=${TOP}`, image), post("explain", image)]);
    const [prediction, page] = [await predicted.json(), await explained.text()];
    if (turn !== turns) return;
    list(prediction.top ?? [prediction]);
    frame.srcdoc = page;
    frame.hidden = false;
    say("");
  } catch (error) {
    if (turn !== turns) return;
    const hasAnswer = !(error instanceof TypeError); // what fetch raises without a connection
    say(hasAnswer ? error.message : "The server does not answer; is softmaxce serve still running?", true);
    list([]);
    frame.hidden = true;
  }
}

function list(ranked) {
  get("classes").replaceChildren(...ranked.map((entry) => {
    const row = document.createElement("tr"), bar = document.createElement("i");
    const [name, number, track] = ["th", "td", "td"].map((tag) => row.appendChild(document.createElement(tag)));
    name.textContent = name.title = entry.class;
    const value = number.appendChild(document.createElement("data"));
    value.value = entry.probability;
    value.textContent = `${(100 * entry.probability).toFixed(2)} %`;
    bar.style.width = `${100 * entry.probability}%`;
    track.appendChild(Object.assign(document.createElement("span"), { className: "track" })).append(bar);
    return row;
  }));
}

frame.addEventListener("load", () => { // on a narrow screen, the page scrolls as one
  const inner = frame.contentDocument.documentElement;
  const fit = () => {
    frame.style.height = matchMedia("(min-width: 56rem)").matches ? "" : `${inner.scrollHeight}px`;
  };
  new ResizeObserver(fit).observe(inner);
  fit();
});

// -- drawing ----------------------------------------------------------------------------------------------------------

let pen = null; // the last point, while the button or the finger is down

function clear() {
  turns += 1;
  context.fillStyle = PAPER;
  context.fillRect(0, 0, pad.width, pad.height);
  photo.hidden = true;
  pad.hidden = false;
  frame.hidden = true;
  list([]);
  say("");
}

function point(event) {
  const box = pad.getBoundingClientRect();
  return [((event.clientX - box.left) * pad.width) / box.width, ((event.clientY - box.top) * pad.height) / box.height];
}

function draw(event) {
  const next = point(event);
  Object.assign(context, { strokeStyle: INK, lineWidth: pad.width / 12, lineCap: "round" });
  context.beginPath();
  context.moveTo(...pen);
  context.lineTo(...next);
  context.stroke();
  pen = next;
}

pad.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  pad.setPointerCapture(event.pointerId);
  pen = point(event);
  draw(event);
});
pad.addEventListener("pointermove", (event) => { if (pen) draw(event); });
for (const name of ["pointerup", "pointercancel"]) {
  pad.addEventListener(name, () => {
    if (!pen) return;
    pen = null;
    const turn = begin();
    pad.toBlob((image) => classify(image, turn), "image/png");
  });
}

// -- files ------------------------------------------------------------------------------------------------------------

function choose(file) {
  if (!file) return;
  URL.revokeObjectURL(photo.src);
  photo.src = URL.createObjectURL(file);
  photo.alt = file.name;
  photo.hidden = false;
  pad.hidden = true;
  classify(file, begin());
}

const { body } = document;
get("clear").addEventListener("click", clear);
get("file").addEventListener("change", (event) => { choose(event.target.files[0]); event.target.value = ""; });
for (const name of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    body.classList.toggle("dropping", name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));

clear();
