// What all figures share: find the place, keep the style apart, make elements.

// Build the figure in every place of this name that has none yet: a notebook may show it twice.
function show(place, style, build, data) {
  for (const box of document.querySelectorAll(`[data-figure="${place}"]:not([data-alive])`)) {
    box.dataset.alive = "";
    box.textContent = "";
    const root = box.attachShadow({ mode: "open" });
    root.append(make("style", {}, style), build(data));
  }
}

// make("button", {class: "on", onclick: f, "aria-pressed": true}, "text", child, ...)
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// 0.4 -> "0.4", -1 -> "−1"
function number(value, digits = 2) {
  return String(+value.toFixed(digits)).replace("-", "−");
}

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${number(100 * share, 1)} %`;
}
