// Lines of a solution to put in order. Judges as llama_adapter_edu/course/assembly.py does, with its words.

function fill(text, value) {
  return text.replace("{0}", value);
}

function judge(puzzle, order) {
  const { says, pieces, orders } = puzzle;
  if (!order) return says.start;
  for (const letter of order) {
    const mistake = pieces[letter.charCodeAt(0) - 65][1];
    if (mistake) return fill(says.wrong, letter).replace("{1}", mistake);
  }
  if (orders.includes(order)) return says.done;
  const shared = (right) => {
    let n = 0;
    while (n < order.length && order[n] === right[n]) n++;
    return n;
  };
  const n = Math.max(...orders.map(shared));
  const begins = n ? fill(says.so_far, order.slice(0, n).split("").join(" ")) + " " : "";
  if (n < order.length) return begins + fill(says.later, order[n]);
  const missing = orders[0].length - n;
  return begins + (missing === 1 ? says.one_more : fill(says.more, missing));
}

function enliven(box) {
  const puzzle = JSON.parse(box.dataset.puzzle);
  const status = box.querySelector("[role=status]");
  let order = "";
  box.querySelectorAll(".pieces > li").forEach((item, place) => {
    const letter = String.fromCharCode(65 + place);
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.append(...item.childNodes);
    button.addEventListener("click", () => {
      const taken = order.includes(letter);
      order = taken ? order.replace(letter, "") : order + letter;
      button.setAttribute("aria-pressed", String(!taken));
      const lines = [...order].map((x) => puzzle.pieces[x.charCodeAt(0) - 65][0]);
      box.querySelector(".order").textContent = lines.join("\n");
      status.textContent = judge(puzzle, order);
    });
    item.append(button);
  });
}

addEventListener("DOMContentLoaded", () => document.querySelectorAll(".assemble").forEach(enliven));
