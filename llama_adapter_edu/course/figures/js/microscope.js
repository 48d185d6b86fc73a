// The prompt microscope: a token, and what each layer and head reads from each prompt for it.

const SHOWN = 12; // of the sorted list

// All reads of one token: layer, head, prompt, weight, opening, and read = opening x weight.
function readsOf(data, weights, token) {
  const heads = data.openings[0].length;
  const reads = [];
  let place = token * data.layers.length * heads * data.prompts;
  for (let layer = 0; layer < data.layers.length; layer++) {
    for (let head = 0; head < heads; head++) {
      for (let prompt = 0; prompt < data.prompts; prompt++) {
        const weight = weights[place++] / 255;
        const opening = data.openings[layer][head];
        reads.push({ layer, head, prompt, weight, opening, read: opening * weight });
      }
    }
  }
  return reads;
}

// values[layer][prompt]: of one head the read itself; of all heads the sum of the sizes.
function stripOf(data, reads, head) {
  const values = data.layers.map(() => Array(data.prompts).fill(0));
  for (const r of reads) {
    if (head === null) values[r.layer][r.prompt] += Math.abs(r.read);
    else if (r.head === head) values[r.layer][r.prompt] = r.read;
  }
  return values;
}

function microscope(data) {
  const weights = Uint8Array.from(atob(data.weights), (letter) => letter.charCodeAt(0));
  const state = { token: data.tokens.length - 1, head: null };
  const result = make("div", {});
  const spoken = make("p", { role: "status" });
  const tokens = data.tokens.map((text, i) => make("button", {
    type: "button", class: "token", onclick: () => choose(i), onfocus: () => choose(i),
    onmouseenter: () => choose(i),
  }, visible(text)));
  const heads = make("select", {
    onchange: (event) => { state.head = event.target.value === "" ? null : +event.target.value; draw(); },
  }, make("option", { value: "" }, "all"),
    ...data.openings[0].map((_, i) => make("option", { value: i }, String(i))));

  function choose(token) {
    state.token = token;
    draw();
  }
  function draw() {
    tokens.forEach((button, i) => button.setAttribute("aria-pressed", i === state.token));
    const reads = readsOf(data, weights, state.token);
    const chosen = reads.filter((r) => state.head === null || r.head === state.head);
    const best = chosen.sort((a, b) => Math.abs(b.read) - Math.abs(a.read)).slice(0, SHOWN);
    const [first] = best;
    spoken.textContent = `${visible(data.tokens[state.token])} reads most from prompt ` +
      `${first.prompt}, in layer ${data.layers[first.layer]}, head ${first.head}.`;
    result.replaceChildren(sortedBars(data, best), strip(data, stripOf(data, reads, state.head)));
  }
  draw();
  return make("div", { class: "figure", role: "group", "aria-label": "The prompt microscope" },
    make("p", { class: "title" }, "The prompt microscope"),
    make("p", {}, "Point at a token, or tab to it:"),
    make("div", { class: "buttons" }, ...tokens),
    make("p", {}, make("label", {}, "Head: ", heads)),
    spoken, result);
}

// A token as it can be seen: spaces and line ends too.
function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵") || "(nothing)";
}

function sortedBars(data, best) {
  const most = Math.abs(best[0].read) || 1;
  return make("div", { class: "bars", "data-list": "" }, ...best.flatMap((r) => [
    make("span", {}, `layer ${data.layers[r.layer]}, head ${r.head}, prompt ${r.prompt}`),
    make("div", { class: "track" }, make("div", {
      class: r.read < 0 ? "bar minus" : "bar", style: `width: ${(100 * Math.abs(r.read)) / most}%`,
    })),
    make("span", { title: `opening ${number(r.opening, 3)} × weight ${number(r.weight, 2)}` },
      number(r.read, 3)),
  ]));
}

// Layers from the top down, prompts from left to right; a stronger colour is a stronger read.
function strip(data, values) {
  const most = Math.max(...values.flat().map(Math.abs)) || 1;
  const rows = values.map((row, layer) => make("div", { class: "cells" }, ...row.map((value, prompt) =>
    make("div", {
      class: value < 0 ? "bar minus" : "bar", style: `opacity: ${Math.abs(value) / most}`,
      title: `layer ${data.layers[layer]}, prompt ${prompt}: ${number(value, 3)}`,
    }))));
  const label = `A strip of ${values.length} layers, the topmost above, and ${data.prompts} prompts. ` +
    "The list above it names the strongest cells.";
  return make("div", { class: "strip", role: "img", "aria-label": label }, ...rows.reverse());
}
