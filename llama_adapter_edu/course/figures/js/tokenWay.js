// One token's way through one head: a picture, a step at a time, forwards and back.

// Boxes of the picture: x, y, width, text. A step lights up one or two of them.
const BOXES = {
  token: [150, 150, 120, "the last token"],
  tokens: [10, 96, 150, "softmax: tokens"],
  prompts: [260, 96, 150, "softmax: prompts"],
  gate: [275, 54, 120, "× tanh(gate)"],
  sum: [150, 32, 80, "+"],
  output: [245, 4, 165, "output, next token"],
};
const ARROWS = ["M190 150L110 124", "M230 150L320 124", "M335 96V82", "M85 96L150 52", "M275 66L230 52",
  "M215 32L245 20"];

// The steps: title, boxes, and what they show.
function stepsOf(data) {
  const last = data.tokens.length - 1;
  const tokens = data.token_weights.map((weight, i) => [seen(data.tokens[i]), weight, i]);
  const prompts = data.prompt_weights.map((weight, i) => [`prompt ${i}`, weight]);
  const strongest = [...tokens].sort((a, b) => b[1] - a[1]).slice(0, 6)
    .map(([text, weight, i]) => [`${text} (${i})`, weight]);
  return [
    ["A token asks", ["token"],
      text(`Command: “${data.command}”. The chat template makes ${data.tokens.length} tokens of it. ` +
        `The last one, ${seen(data.tokens[last])} (${last}), stands where the answer begins. We follow it ` +
        `through layer ${data.layer}, head ${data.head}. Its query begins with`), numbers(data.query)],
    ["It looks at the tokens", ["tokens"],
      text("Its query meets the key of each token so far. One softmax over them; the strongest:"),
      bars(strongest)],
    ["It reads the tokens", ["tokens"],
      text("The tokens' values, each times its weight, added up. It begins with"),
      numbers(data.from_tokens)],
    ["It looks at the prompts", ["prompts"],
      text("The same query meets the keys of the learnt prompts, in a softmax of their own. So they take " +
        "no weight away from the tokens."), bars(prompts)],
    ["It reads the prompts", ["prompts"],
      text("The prompts' values, each times its weight, added up. It begins with"),
      numbers(data.from_prompts)],
    ["The gate", ["gate"],
      text("This head's gate was 0 before the training: nothing came through. Now tanh(gate) is"),
      make("p", {}, make("code", {}, `tanh(${number(data.gate, 4)}) = ${number(data.opening, 4)}`))],
    ["The sum", ["sum"], text("Tokens + tanh(gate) × prompts, number by number:"), sums(data)],
    ["The output", ["output"],
      text("Heads are merged and go through the frozen output layer; then come the layers above. In the " +
        "end, the likeliest next tokens, with the adapter:"), bars(named(data.with_adapter)),
      text("And with all gates closed, which is the frozen Llama:"), bars(named(data.without))],
  ];
}

function tokenWay(data) {
  const steps = stepsOf(data);
  let at = 0;
  const picture = make("div", { "aria-hidden": true });
  const told = make("div", { role: "status", "aria-live": "polite" });
  const back = make("button", { type: "button", onclick: () => go(-1) }, "← Back");
  const next = make("button", { type: "button", onclick: () => go(1) }, "Next →");
  function go(by) {
    at = Math.min(Math.max(at + by, 0), steps.length - 1);
    draw();
  }
  function draw() {
    const [title, lit, ...content] = steps[at];
    picture.innerHTML = drawing(lit);
    told.replaceChildren(
      make("p", { class: "title" }, `${at + 1} of ${steps.length}: ${title}`), ...content);
    back.setAttribute("aria-disabled", at === 0);
    next.setAttribute("aria-disabled", at === steps.length - 1);
  }
  function keys(event) {
    if (event.key === "ArrowRight") go(1);
    if (event.key === "ArrowLeft") go(-1);
  }
  draw();
  return make("div", { class: "figure", role: "group", "aria-label": "One token's way", onkeydown: keys },
    picture, make("div", { class: "buttons" }, back, next), told);
}

function drawing(lit) {
  const boxes = Object.entries(BOXES).map(([name, [x, y, width, label]]) =>
    `<g class="${lit.includes(name) ? "lit" : ""}">` +
    `<rect x="${x}" y="${y}" width="${width}" height="28" rx="6"/>` +
    `<text x="${x + width / 2}" y="${y + 19}">${label}</text></g>`);
  const arrows = ARROWS.map((path) => `<path d="${path}"/>`);
  return `<svg class="way" viewBox="0 0 420 182">${arrows.join("")}${boxes.join("")}</svg>`;
}

const text = (sentence) => make("p", {}, sentence);
const numbers = (list) =>
  make("p", {}, make("code", {}, `[${list.map((x) => number(x, 3)).join(", ")}, …]`));
const named = (pairs) => pairs.map(([token, chance]) => [seen(token), chance]);

// A token as it can be seen: spaces and line ends too.
function seen(token) {
  return token.replace(/ /g, "␣").replace(/\n/g, "↵");
}

function bars(pairs) {
  return make("div", { class: "bars" }, ...pairs.flatMap(([name, share]) => [
    make("code", {}, name),
    make("div", { class: "track" }, make("div", { class: "bar", style: `width: ${100 * share}%` })),
    make("span", {}, percent(share)),
  ]));
}

function sums(data) {
  const lines = data.from_tokens.map((read, i) =>
    `${number(read, 3)} + ${number(data.opening, 3)} × ${number(data.from_prompts[i], 3)}` +
    ` = ${number(data.sum[i], 3)}`);
  return make("p", {}, make("code", {}, lines.join("\n")));
}
