"use strict";
(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const storeKey = `xmcgan-ranking-${study.page}`;
  const items = new Map(study.items.map((item) => [item.id, item]));
  const QUESTIONS = [
    { key: "quality", title: "1. Image quality", text: "Which looks best? Ignore the caption." },
    { key: "alignment", title: "2. Match with the caption",
      text: "Which shows best what the caption says? Ignore how well it is drawn." },
  ];
  const byId = (id) => document.getElementById(id);
  let state = null;      // what is kept: rater, order of items, answers, when finished
  let shownAt = 0;       // when the item came up, for the time it took
  let broken = new Set(); // images of this item that failed to load
  let saved = true;      // whether the browser keeps progress

  // ---- what is kept ----------------------------------------------------------------------------
  function load() {
    try {
      const text = localStorage.getItem(storeKey);
      localStorage.setItem(`${storeKey}-try`, "1");
      localStorage.removeItem(`${storeKey}-try`);
      const kept = text ? JSON.parse(text) : null;
      return kept?.order && kept.answers ? kept : null;
    } catch {
      return lost();
    }
  }
  function save() {
    try {
      localStorage.setItem(storeKey, JSON.stringify(state));
    } catch {
      lost();
    }
  }
  function lost() {
    saved = false;
    notice("This browser does not keep progress. Leave the page open until you have saved your " +
      "answers as a file.");
    byId("kept").textContent = "Nothing is sent anywhere; you save your answers as a file at the end.";
    return null;
  }
  function notice(text) {
    byId("notice").textContent = text;
    byId("notice").hidden = !text;
  }
  window.addEventListener("beforeunload", (event) => {
    if (!saved && state && !state.finished) event.preventDefault();
  });
  window.addEventListener("storage", (event) => {
    if (event.key !== storeKey && event.key !== null) return;
    // Two tabs would overwrite each other's answers: the one that was written to last counts.
    state = load();
    begin();
    notice("This page is open in another tab as well. Go on in one of them only.");
  });

  // ---- random ----------------------------------------------------------------------------------
  function newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }
  function shuffled(values) {
    const result = [...values];
    for (let i = result.length - 1; i > 0; i--) {
      const j = Math.floor(Math.random() * (i + 1));
      [result[i], result[j]] = [result[j], result[i]];
    }
    return result;
  }

  // ---- screens ---------------------------------------------------------------------------------
  function show(screen) {
    for (const id of ["start", "rate", "end"]) byId(id).hidden = id !== screen;
    window.scrollTo(0, 0);
  }
  function begin() {
    if (!state) {
      byId("start-count").textContent = counted(items.size, "caption");
      byId("start-images").textContent = counted(study.items[0].images.length, "picture");
      byId("start-minutes").textContent = `about ${Math.max(1, Math.round(items.size / 3))} minutes`;
      show("start");
      return;
    }
    if (state.finished || state.at >= state.order.length) showEnd();
    else showItem();
  }
  byId("enter").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = byId("name").value.replace(/[\ud800-\udfff]|\p{Cc}/gu, "").trim();
    if (!name || state) return;
    state = { rater: { id: newId(), name }, order: shuffled(items.keys()), at: 0, answers: {},
      started: now(), finished: null };
    save();
    begin();
  });
  const now = () => new Date().toISOString();
  const counted = (num, word) => `${num} ${word}${num === 1 ? "" : "s"}`;

  // ---- one caption -----------------------------------------------------------------------------
  const current = () => items.get(state.order[state.at]);
  function answer() {
    const { id, images } = current();
    if (!state.answers[id]) {
      state.answers[id] = { shown: shuffled(images.map((image) => image.id)), quality: [],
        alignment: [], skipped: null, failed: [], seconds: 0 };
      save();
    }
    return state.answers[id];
  }
  const complete = (ranking) => ranking.length === current().images.length;
  const ordinal = (n) => n + (["th", "st", "nd", "rd"][n % 10] ?? "th");

  function showItem() {
    const item = current();
    broken = new Set();
    shownAt = Date.now();
    byId("place").textContent = `Caption ${state.at + 1} of ${state.order.length}`;
    byId("progress").max = state.order.length;
    byId("progress").value = state.at;
    byId("caption").textContent = `“${item.caption}”`;
    byId("broken").hidden = true;
    byId("back").disabled = state.at === 0;
    byId("next").textContent = state.at + 1 === state.order.length ? "Finish" : "Next";
    byId("questions").replaceChildren(...QUESTIONS.map((question) => row(question, item)));
    show("rate");
    update();
    byId("caption").focus();
  }
  function row(question, item) {
    const set = make("fieldset", { id: question.key });
    const legend = make("legend", {}, make("b", { textContent: question.title }),
      make("span", { className: "quiet", textContent: question.text }),
      make("span", { className: "state" }));
    const clear = make("button", { type: "button", textContent: "Clear" });
    clear.setAttribute("aria-label", `Clear the ranking: ${question.title}`);
    clear.addEventListener("click", () => change(question.key, []));
    legend.append(clear);
    const cards = make("div", { className: "cards" });
    answer().shown.forEach((id, index) => cards.append(
      card(question.key, item.images.find((image) => image.id === id), index)));
    set.append(legend, cards);
    return set;
  }
  function card(key, image, index) {
    const letter = String.fromCharCode(65 + index);
    const picture = make("img", { alt: "", draggable: false });
    const button = make("button", { type: "button", className: "card" }, picture,
      make("span", { className: "under" },
        make("span", { className: "letter", textContent: letter }),
        make("span", { className: "rank" })));
    button.dataset.image = image.id;
    button.dataset.letter = letter;
    button.addEventListener("click", () => choose(key, image.id));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const cards = [...button.parentNode.children];
      if (step) cards[(cards.indexOf(button) + step + cards.length) % cards.length].focus();
    });
    picture.addEventListener("error", () => {
      picture.replaceWith(make("span", { className: "failed", textContent: "This picture failed to load" }));
      failed(image.id);
    });
    picture.src = `data:image/webp;base64,${image.webp}`;
    return button;
  }
  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }
  function failed(id) {
    broken.add(id);
    answer().failed = [...broken];
    save();
    byId("broken").textContent = `${counted(broken.size, "picture")} of this caption failed to load, ` +
      "so it cannot be ranked. Skip it: the file of your answers will say why.";
    byId("broken").hidden = false;
    update();
  }

  // ---- ranking ---------------------------------------------------------------------------------
  function choose(key, id) {
    if (state.finished || broken.size) return;
    const ranking = answer()[key];
    const at = ranking.indexOf(id);
    const num = current().images.length;
    if (at < 0) {
      const longer = [...ranking, id];
      const left = current().images.filter((image) => !longer.includes(image.id));
      change(key, left.length === 1 ? [...longer, left[0].id] : longer);
    } else {
      // The last place was filled in by the page: it goes with the one before.
      change(key, ranking.slice(0, Math.min(at, num - 2)));
    }
  }
  function change(key, ranking) {
    if (state.finished) return;
    answer()[key] = ranking;
    answer().skipped = null;
    save();
    update();
    const letters = ranking.map((id) => letterOf(key, id)).join(", ");
    byId("said").textContent = letters ? `Order from best to worst: ${letters}` : "No order yet";
    if (ready()) byId("next").focus();
  }
  const letterOf = (key, id) =>
    byId(key).querySelector(`[data-image="${id}"]`).dataset.letter;
  const ready = () => !broken.size && QUESTIONS.every(({ key }) => complete(answer()[key]));
  const open = () => QUESTIONS.find(({ key }) => !complete(answer()[key]));

  function update() {
    const missing = open();
    for (const { key, title } of QUESTIONS) {
      const ranking = answer()[key];
      const set = byId(key);
      const isNow = missing?.key === key && !broken.size;
      set.classList.toggle("now", isNow);
      set.querySelector("legend button").disabled = !ranking.length;
      set.querySelector(".state").textContent = complete(ranking) ? "✓ done"
        : isNow ? `▸ choose the ${ranking.length ? ordinal(ranking.length + 1) : "best"}` : "";
      for (const button of set.querySelectorAll(".card")) {
        const at = ranking.indexOf(button.dataset.image);
        const best = at === 0 ? ", best" : at === current().images.length - 1 ? ", worst" : "";
        const text = at < 0 ? "not ranked" : ordinal(at + 1) + best;
        button.classList.toggle("ranked", at >= 0);
        button.querySelector(".rank").textContent = text;
        button.setAttribute("aria-pressed", String(at >= 0));
        const fault = broken.has(button.dataset.image) ? "failed to load" : text;
        button.setAttribute("aria-label", `Picture ${button.dataset.letter}, ${fault} (${title})`);
      }
    }
    byId("next").setAttribute("aria-disabled", String(!ready()));
    byId("missing").textContent = ready() ? "" : broken.size ? "" : `Still to rank: ${missing.title}`;
  }
  document.addEventListener("keydown", (event) => {
    if (byId("rate").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    const question = open();
    if (event.key === "Backspace") {
      const last = [...QUESTIONS].reverse().find(({ key }) => answer()[key].length);
      if (last) choose(last.key, answer()[last.key].at(-1));
      event.preventDefault();
    } else if (event.key === "Enter" && ready() && !event.target.closest("button")) {
      next();
    } else if (question && /^[a-z]$/i.test(event.key)) {
      const letter = event.key.toUpperCase();
      const button = byId(question.key).querySelector(`[data-letter="${letter}"]`);
      // A ranked picture stays: the key of a tired hand, pressed twice, takes nothing back.
      if (button && !answer()[question.key].includes(button.dataset.image)) button.click();
    }
  });

  // ---- from one to the next --------------------------------------------------------------------
  function leave(to) {
    answer().seconds += Math.round((Date.now() - shownAt) / 1000);
    state.at = to;
    save();
    begin();
  }
  function next() {
    if (!ready()) {
      byId("said").textContent = byId("missing").textContent || byId("broken").textContent;
      return;
    }
    answer().skipped = null;
    leave(state.at + 1);
  }
  byId("next").addEventListener("click", next);
  byId("back").addEventListener("click", () => leave(state.at - 1));
  byId("skip").addEventListener("click", () => {
    Object.assign(answer(), { quality: [], alignment: [],
      skipped: broken.size ? "image failed to load" : "by the rater" });
    leave(state.at + 1);
  });

  // ---- the end ---------------------------------------------------------------------------------
  function showEnd() {
    const { order } = state;
    const skipped = order.filter((id) => state.answers[id]?.skipped);
    byId("end-title").textContent = state.finished ? "Thank you" : "All captions done";
    byId("summary").textContent = `${counted(order.length - skipped.length, "caption")} ranked, ` +
      `${skipped.length} skipped. Rater: ${state.rater.name}.`;
    byId("skipped").replaceChildren(...skipped.map((id) =>
      make("li", {}, `Caption ${order.indexOf(id) + 1} skipped: ${state.answers[id].skipped}`)));
    byId("review").hidden = Boolean(state.finished);
    byId("another").hidden = !state.finished;
    byId("download").textContent = state.finished ? "Save the same file again" :
      "Save my answers as a file";
    byId("after").textContent = state.finished
      ? `Saved as ${fileName()} in your downloads. Send this file to the person who asked you. Your ` +
        "answers are closed now; saving again gives the same file, and it counts once."
      : "Saving closes your answers: look back at them before if you want to.";
    show("end");
    byId("end-title").focus();
  }
  byId("review").addEventListener("click", () => {
    state.at = state.order.length - 1;
    begin();
  });
  byId("another").addEventListener("click", () => {
    if (!confirm("Have you sent your file? The answers leave this browser now.")) return;
    state = null;
    try { localStorage.removeItem(storeKey); } catch { lost(); }
    byId("name").value = "";
    begin();
  });
  let busy = false;
  byId("download").addEventListener("click", () => {
    if (busy) return; // a double click saves one file
    busy = true;
    setTimeout(() => { busy = false; }, 1500);
    state.finished ??= now();
    save();
    const link = make("a", { download: fileName() });
    link.href = URL.createObjectURL(new Blob([results()], { type: "application/json" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    showEnd();
  });
  function fileName() {
    const name = state.rater.name.match(/[\p{L}\p{N}]+/gu)?.join("-").slice(0, 30) ?? "rater";
    return `ranking-${study.page.slice(0, 6)}-${name}-${state.rater.id.slice(0, 6)}.json`;
  }
  function results() {
    const body = {
      format: study.format, page: study.page, rater: state.rater, started: state.started,
      finished: state.finished,
      answers: state.order.filter((id) => state.answers[id])
        .map((id) => ({ item: id, ...state.answers[id] })),
    };
    return JSON.stringify({ ...body, checksum: sha256(canonical(body)) }, null, 1) + "\n";
  }
  // Keys sorted, no spaces: the same text as Python's json.dumps(sort_keys=True).
  function canonical(value) {
    if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
    if (value === null || typeof value !== "object") return JSON.stringify(value);
    return `{${Object.keys(value).sort().map((key) =>
      `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
  }
  // FIPS 180-4. Browsers offer crypto.subtle on https only, and this page is a file.
  function sha256(text) {
    const bytes = new TextEncoder().encode(text);
    const padded = new DataView(new ArrayBuffer(64 * Math.ceil((bytes.length + 9) / 64)));
    bytes.forEach((byte, i) => padded.setUint8(i, byte));
    padded.setUint8(bytes.length, 0x80);
    padded.setUint32(padded.byteLength - 4, 8 * bytes.length);
    const primes = [];
    for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
    const fraction = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32);
    const k = primes.map((p) => fraction(Math.cbrt(p)));
    const hash = primes.slice(0, 8).map((p) => fraction(Math.sqrt(p)));
    const turn = (x, n) => (x >>> n) | (x << (32 - n));
    const w = new Array(64);
    for (let start = 0; start < padded.byteLength; start += 64) {
      for (let t = 0; t < 64; t++) {
        const s0 = turn(w[t - 15], 7) ^ turn(w[t - 15], 18) ^ (w[t - 15] >>> 3);
        const s1 = turn(w[t - 2], 17) ^ turn(w[t - 2], 19) ^ (w[t - 2] >>> 10);
        w[t] = t < 16 ? padded.getInt32(start + 4 * t) : (w[t - 16] + s0 + w[t - 7] + s1) | 0;
      }
      let [a, b, c, d, e, f, g, h] = hash;
      for (let t = 0; t < 64; t++) {
        const sum1 = turn(e, 6) ^ turn(e, 11) ^ turn(e, 25);
        const t1 = (h + sum1 + ((e & f) ^ (~e & g)) + k[t] + w[t]) | 0;
        const sum0 = turn(a, 2) ^ turn(a, 13) ^ turn(a, 22);
        const t2 = (sum0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
      }
      [a, b, c, d, e, f, g, h].forEach((value, i) => { hash[i] = (hash[i] + value) | 0; });
    }
    return hash.map((value) => (value >>> 0).toString(16).padStart(8, "0")).join("");
  }

  state = load();
  begin();
})();
