// The page of scripts/demo.py. Whatever comes from a client or model is shown as text, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);
const GONE = "The server does not answer: is it still running?";
const COUNT = 8, COMPARED = 4, MOST_MODELS = 4;
let models = [], latest = 0, lastDrawn = null, wayFrames = [], timer = null;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const figure = (picture, text) => make("figure", {}, picture, make("figcaption", {textContent: text}));
const picture = (data, alt) => make("img", {src: `data:image/png;base64,${data}`, alt});
const grid = (images, caption) => make("div", {className: "grid"},
  ...images.map((data, i) => figure(picture(data, `${caption}, image ${i + 1}`), "")));

async function post(path, body) {
  const request = {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body)};
  const response = await fetch(path, request).catch(() => { throw new Error(GONE); });
  if (!response.ok) {
    const text = (await response.json().catch(() => ({}))).error;
    throw new Error(text || `the server answered ${response.status}`);
  }
  return response;
}

// A seed that is no whole number goes to the server as it is, which says what is wrong.
const wholeNumber = (text) => /^\d{1,15}$/.test(text.trim()) ? Number(text) : text;

function settings(choice = byId("model").value) {
  return {...JSON.parse(choice || "{}"), seed: wholeNumber(byId("seed").value),
    truncation: JSON.parse(byId("truncation").value)};
}

function showError(text) {
  byId("error").textContent = text;
  byId("error").hidden = !text;
}

// Runs a use of the page; an answer that a newer question has overtaken is not shown.
async function work(ask, show) {
  const number = ++latest;
  byId("status").textContent = "Working …";
  showError("");
  const start = performance.now();
  try {
    const answer = await ask();
    if (number !== latest) return;
    const notes = (await show(answer)) || [];
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    byId("status").textContent = [`Done in ${seconds} s.`, ...notes].join(" ");
  } catch (error) {
    if (number !== latest) return;
    byId("status").textContent = "";
    showError(error.message);
  }
}

const origin = (manifest) => `${manifest.model}, step ${manifest.step}${manifest.weights === "raw" ? ", raw weights" : ""}`;
const result = (id, ...children) => byId(id).querySelector(".result").replaceChildren(...children);
const json = async (path, body) => (await post(path, body)).json();

function save(blob, name) {
  const link = make("a", {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const uses = {
  draw(form) {
    const body = {...settings(), captions: [form.caption.value], num: COUNT};
    return work(() => json("generate", body), (answer) => {
      lastDrawn = body;
      result("draw", grid(answer.images, form.caption.value),
        make("p", {textContent: `${body.captions[0]} (${origin(answer.manifest)}, seed ${body.seed})`}));
      return answer.notes;
    });
  },
  word(form) {
    const captions = [form.caption.value, form.other.value];
    return work(() => json("generate", {...settings(), captions, num: 4, shared_noise: true}), (answer) => {
      result("word", ...captions.flatMap((caption, i) => [
        make("h2", {textContent: caption}), grid(answer.images.slice(4 * i, 4 * i + 4), caption)]));
      return answer.notes;
    });
  },
  way(form) {
    return work(() => json("between", wayBody(form)), (answer) => {
      wayFrames = answer.images;
      form.place.hidden = false;
      form.place.max = wayFrames.length - 1;
      form.place.value = 0;
      showFrame();
    });
  },
  attention(form) {
    const {caption} = form;
    const body = {...settings(), captions: [caption.value]};
    return work(() => json("attention", body), async ({image, words, maps}) => {
      const source = picture(image, caption.value);
      await source.decode();
      const most = Math.max(...maps.flat(2));
      const names = words.map((word) => ({"[CLS]": "(start)", "[SEP]": "(end)"}[word] || word));
      result("attention", make("div", {className: "words"}, figure(source, "the image"),
        ...maps.map((map, i) => figure(heat(source, map, most), `${names[i]} ${percent(map)} %`))));
    });
  },
  compare(form) {
    const captions = form.captions.value.split("\n").filter((line) => line.trim());
    const choices = [...form.querySelectorAll("select")].map((select) => select.value).filter(Boolean);
    const ask = (choice) => json("generate", {...settings(choice), captions, num: COMPARED, shared_noise: true})
      .catch((error) => ({error: `${JSON.parse(choice).model}: ${error.message}`}));
    return work(() => Promise.all(choices.map(ask)), (answers) => {
      result("compare", ...answers.flatMap((answer) => answer.error
        ? [make("p", {className: "error", textContent: answer.error})]
        : [make("h2", {textContent: origin(answer.manifest)}),
          ...captions.flatMap((caption, i) => [make("p", {textContent: caption}),
            grid(answer.images.slice(COMPARED * i, COMPARED * (i + 1)), caption)])]));
    });
  },
};

function wayBody(form) {
  const shared = settings(), end = form.end_seed.value;
  return {...shared, captions: [form.caption.value, form.other.value || form.caption.value],
    end_seed: end.trim() ? wholeNumber(end) : shared.seed};
}

function showFrame() {
  const place = Number(byId("way").place.value);
  const share = Math.round(100 * place / (wayFrames.length - 1));
  result("way", make("div", {className: "one"}, figure(picture(wayFrames[place], `${share} % of the way`), `${share} %`)));
}

const percent = (map) => Math.round(100 * map.flat().reduce((sum, share) => sum + share, 0) / map.flat().length);

function heat(source, map, most) {
  const small = make("canvas", {width: map[0].length, height: map.length});
  const colors = new ImageData(map[0].length, map.length);
  map.flat().forEach((share, i) => colors.data.set([230, 77, 0, 204 * share / most], 4 * i));
  small.getContext("2d").putImageData(colors, 0, 0);
  const canvas = make("canvas", {width: 256, height: 256});
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.filter = "grayscale(1)";
  context.drawImage(source, 0, 0, 256, 256);
  context.filter = "none";
  context.imageSmoothingEnabled = true;
  context.drawImage(small, 0, 0, 256, 256);
  return canvas;
}

const actions = {
  another(form) {
    const seed = wholeNumber(byId("seed").value);
    if (typeof seed === "number") byId("seed").value = seed + 1;
    return uses.draw(form);
  },
  save() {
    if (!lastDrawn) return showError("Draw something first.");
    return work(async () => (await post("generate", {...lastDrawn, format: "zip"})).blob(),
      (blob) => save(blob, `images_seed${lastDrawn.seed}.zip`));
  },
  gif(form) {
    return work(async () => (await post("between", {...wayBody(form), format: "gif"})).blob(),
      (blob) => save(blob, "way.gif"));
  },
};

function fillChoices(select, first) {
  const before = select.value;
  select.replaceChildren(...first);
  for (const {name, steps, error} of models) {
    const group = make("optgroup", {label: name});
    const add = (text, choice) => group.append(make("option", {textContent: text, value: JSON.stringify(choice), disabled: !!error}));
    const runs = steps.length ? [null, ...steps.toReversed()] : [];
    if (!runs.length) add(error ? `${name} (cannot be used)` : name, {model: name});
    for (const step of runs) {
      for (const weights of ["ema", "raw"]) {
        add(`${name}, ${step === null ? "newest" : `step ${step}`}, ${weights === "ema" ? "averaged" : "raw"}`, {model: name, step, weights});
      }
    }
    select.append(group);
  }
  if ([...select.options].some((option) => option.value === before && before)) select.value = before;
}

async function loadModels() {
  const text = await (await fetch("models")).text();
  if (text === JSON.stringify(models)) return;  // a list that is open stays open
  models = JSON.parse(text);
  document.querySelectorAll("select.model").forEach((select) =>
    fillChoices(select, select.id ? [] : [make("option", {value: "", textContent: "none"})]));
  const broken = models.filter((model) => model.error);
  byId("broken").textContent = broken.map((model) => `${model.name} cannot be used: ${model.error}`).join("\n");
  byId("broken").hidden = !broken.length;
  showModel();
}

function showModel() {
  const {model} = JSON.parse(byId("model").value || "{}");
  const chosen = models.find(({name}) => name === model) || {about: "", examples: []};
  byId("about").textContent = chosen.about;
  document.querySelector(".examples").replaceChildren(...chosen.examples.map((text) => make("button", {
    type: "button", textContent: text, onclick() {
      byId("draw").caption.value = text;
      uses.draw(byId("draw"));
    }})));
  const [one = "", two = one] = chosen.examples;
  const presets = {draw: {caption: one}, word: {caption: one, other: two},
    way: {caption: one, other: two}, attention: {caption: one}, compare: {captions: one}};
  for (const [id, fields] of Object.entries(presets)) {
    for (const [name, text] of Object.entries(fields)) {
      const field = byId(id)[name];  // what the user typed stays
      if (one && (!field.value || field.value === field.dataset.preset)) field.value = field.dataset.preset = text;
    }
  }
}

function showPanel(name) {
  for (const tab of document.querySelectorAll("nav button")) {
    const chosen = tab.dataset.panel === name;
    tab.setAttribute("aria-selected", chosen);
    byId(tab.dataset.panel).hidden = !chosen;
  }
  showError("");
  byId("status").textContent = "";
}

for (const tab of document.querySelectorAll("nav button")) tab.onclick = () => showPanel(tab.dataset.panel);
for (const [id, use] of Object.entries(uses)) {
  byId(id).onsubmit = (event) => { event.preventDefault(); use(byId(id)); };
}
for (const button of document.querySelectorAll("[data-action]")) {
  button.onclick = () => actions[button.dataset.action](button.form);
}
for (let i = 1; i <= MOST_MODELS; i++) {
  const label = make("label", {className: "wide"}, `Model ${i}`, make("select", {className: "model"}));
  document.querySelector(".choices").append(label);
}
byId("way").place.oninput = showFrame;
byId("model").onchange = showModel;
byId("compare").watch.onchange = ({target}) => {
  clearInterval(timer);
  if (target.checked) timer = setInterval(() => byId("compare").hidden || uses.compare(byId("compare")), 30000);
};
showPanel("draw");
loadModels().then(() => {
  const selects = document.querySelectorAll(".choices select");
  const usable = [...byId("model").options].filter((option) => !option.disabled).map((option) => option.value);
  if (!usable.length) return;
  selects[0].value = usable[0];
  selects[1].value = usable[1] || "";
  setInterval(() => loadModels().catch(() => {}), 30000);
  uses.draw(byId("draw"));
}).catch(() => showError(GONE));
