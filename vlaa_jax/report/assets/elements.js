"use strict";
// Everything a model or a data set wrote goes onto the page through textContent, nothing as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#2463c4", "#d9572b", "#2a8f5b", "#8a4fbf", "#b8860b", "#c2316f", "#4a6b7c", "#7a7a00"];

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  for (const child of children.flat()) {
    if (child == null || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

const el = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
const svg = (tag, properties, ...children) =>
  fill(document.createElementNS(SVG, tag), properties, children);

function number(value, digits = 4) {
  if (value == null || Number.isNaN(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(digits)));
}

function choice(label, options, value, onchange) {
  const items = options.map(([key, text, off]) =>
    el("option", { value: key, selected: String(key) === String(value), disabled: off }, text));
  const select = el("select", { "aria-label": label, onchange: () => onchange(select.value) }, items);
  return el("label", {}, label, " ", select);
}

function tick(label, value, onchange) {
  const box = el("input", { type: "checkbox", onchange: () => onchange(box.checked) });
  box.checked = value;
  return el("label", {}, box, " ", label);
}

function field(label, type, value, oninput, extra = {}) {
  const input = el("input", {
    type, "aria-label": label, value, oninput: () => oninput(input.value), ...extra,
  });
  return el("label", {}, label, " ", input);
}

const TIP = el("div", { id: "tip", hidden: true });

function tip(event, lines) {
  TIP.hidden = !lines;
  if (!lines) return;
  TIP.replaceChildren(...lines.map(([name, value]) => el("div", {}, el("span", {}, name), value)));
  const width = TIP.offsetWidth, height = TIP.offsetHeight;
  TIP.style.left = `${Math.min(event.clientX + 14, innerWidth - width - 4)}px`;
  TIP.style.top = `${Math.min(event.clientY + 14, innerHeight - height - 4)}px`;
}
