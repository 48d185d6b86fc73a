// The gate dial on stored stops. One control is turned at a time; the others go back to where they
// were trained to be, because only such stops were measured.

const SINGLE = "single heads";

// What a stop says about one row, with its numbers looked up.
function reading(data, stop, row) {
  const pairs = stop.next[row];
  const next = [];
  for (let i = 0; i < pairs.length; i += 2) {
    next.push({ token: data.tokens[pairs[i]], chance: pairs[i + 1] / 1000 });
  }
  const answer = data.answers[stop.answers[row]];
  const right = data.rows.filter((r, i) => data.answers[stop.answers[i]] === r.output).length;
  return { answer, isRight: answer === data.rows[row].output, right, loss: stop.loss, next };
}

// The stops of single heads, as head[layer][head].
function headStops(data) {
  const table = data.openings.map(() => []);
  for (const stop of data.stops[SINGLE]) table[stop.layer][stop.head] = stop;
  return table;
}

function gateDial(data) {
  const heads = headStops(data);
  const sliders = Object.keys(data.stops).filter((name) => name !== SINGLE);
  const trained = data.stops[sliders[0]].find((stop) => stop.factor === 1);
  const state = { row: 0, stop: trained, control: null };

  const result = make("div", { role: "status", "aria-live": "polite" });
  const controls = sliders.map((name) => slider(name, data.stops[name], turn));
  const switches = headSwitches(data, heads, turn);
  const rows = make("select", { onchange: (event) => { state.row = +event.target.value; draw(); } },
    ...data.rows.map((row, i) => make("option", { value: i }, row.instruction)));

  function turn(control, stop) {
    state.stop = stop ?? trained;
    for (const other of [...controls, switches]) if (other !== control) other.reset();
    draw();
  }
  function draw() {
    const now = reading(data, state.stop, state.row);
    result.replaceChildren(...resultOf(now, data.rows));
  }
  const reset = make("button", { type: "button", onclick: () => turn(null, trained) },
    "Back to the trained gates");
  draw();
  return make("div", { class: "figure", role: "group", "aria-label": "The gate dial" },
    make("p", { class: "title" }, "The gate dial"),
    make("p", {}, make("label", {}, "Command: ", rows)),
    result,
    make("fieldset", {}, make("legend", {}, "Multiply the gate openings"),
      ...controls.map((control) => control.element)),
    switches.element,
    make("p", {}, reset),
    make("p", {}, make("small", {}, `Stored stops, one control at a time. ${conditionsOf(data)}`)));
}

// A slider that snaps to the stops. It hands itself and its stop to `turn`.
function slider(name, stops, turn) {
  const home = stops.findIndex((stop) => stop.factor === 1);
  const value = make("span", { "aria-hidden": true });
  const input = make("input", { type: "range", min: 0, max: stops.length - 1, step: 1, value: home,
    "aria-label": name, oninput: () => { say(); turn(control, stops[+input.value]); } });
  function say() {
    value.textContent = `× ${number(stops[+input.value].factor)}`;
    input.setAttribute("aria-valuetext", `times ${number(stops[+input.value].factor)}`);
  }
  const control = {
    element: make("label", { class: "row" }, make("span", {}, name), input, value),
    reset() { input.value = home; say(); },
  };
  say();
  return control;
}

// Choose a layer; each of its heads is a switch.
function headSwitches(data, heads, turn) {
  let off = null;
  const buttons = make("div", { class: "buttons" });
  const layer = make("select", { onchange: () => { off = null; draw(); turn(control, null); } },
    ...heads.map((_, i) => make("option", { value: i }, String(i))));
  layer.value = heads.length - 1;
  function draw() {
    buttons.replaceChildren(...heads[+layer.value].map((stop, head) => make("button", {
      type: "button", "aria-pressed": off === head,
      "aria-label": `head ${head} off, its opening is ${number(data.openings[stop.layer][head], 3)}`,
      title: `opening ${number(data.openings[stop.layer][head], 3)}`,
      onclick: () => {
        off = off === head ? null : head;
        draw();
        buttons.children[head].focus();
        turn(control, off === null ? null : stop);
      },
    }, String(head))));
  }
  const control = {
    element: make("fieldset", {}, make("legend", {}, "Switch one head off"),
      make("label", {}, "Layer: ", layer), buttons),
    reset() { if (off !== null) { off = null; draw(); } },
  };
  draw();
  return control;
}

function resultOf(now, rows) {
  const kind = now.isRight ? "answer right" : "answer";
  return [
    make("p", { class: kind }, `${now.isRight ? "✓ right: " : "✗ wrong: "}`,
      make("code", {}, now.answer || "(nothing)")),
    make("p", { class: "facts" },
      make("span", {}, "loss ", make("strong", {}, String(now.loss)), " nats per token"),
      make("span", {}, make("strong", {}, `${now.right} of ${rows.length}`), " commands right")),
    make("p", {}, "The likeliest first tokens of the answer:"),
    make("div", { class: "bars" }, ...now.next.flatMap(({ token, chance }) => [
      make("code", {}, JSON.stringify(token)),
      make("div", { class: "track" },
        make("div", { class: "bar", style: `width: ${100 * chance}%` })),
      make("span", {}, chance ? percent(chance) : "< 0.1 %"),
    ])),
  ];
}

function conditionsOf(data) {
  const { device, torch } = data.conditions;
  return `Losses are means over ${data.rows.length} unseen commands; ${device}, torch ${torch}.`;
}
