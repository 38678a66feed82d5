// Making and changing elements. Text becomes text nodes, whatever it holds.

export const find = (id) => document.getElementById(id);

/** An element with attributes (never a handler, never a style) and children. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for a drawing. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Sets a text only when it differs, so that nothing is read out or drawn again for nothing. */
export function say(node, text) {
  const wanted = String(text ?? "");
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Sets a figure: a text for people and the number behind it. */
export function tell(node, text, value) {
  say(node, text);
  const exact = value === null || value === undefined ? "" : String(value);
  if (node.getAttribute("value") !== exact) node.setAttribute("value", exact);
}

export function paint(node, kind) {
  for (const other of ["good", "warn", "bad"]) node.classList.toggle(other, other === kind);
}

/**
 * Makes the children of `parent` those of `items`, in their order, reusing the node of an item with
 * the same key. The child that has the focus is never moved: the others move round it.
 */
export function keep(parent, items, keyOf, create, update) {
  const known = new Map();
  for (const node of [...parent.children]) known.set(node.dataset.key, node);
  const wanted = items.map((item) => {
    const key = keyOf(item);
    let node = known.get(key);
    if (node) {
      known.delete(key);
    } else {
      node = create(item);
      node.dataset.key = key;
    }
    update(node, item);
    return node;
  });
  for (const node of known.values()) {
    if (!node.contains(document.activeElement)) node.remove();
  }
  const fixed = wanted.find((node) => node.parentNode === parent && node.contains(document.activeElement));
  if (!fixed) {
    wanted.forEach((node, at) => {
      if (parent.children[at] !== node) parent.insertBefore(node, parent.children[at] ?? null);
    });
    return;
  }
  let before = true;
  for (const node of wanted) {
    if (node === fixed) before = false;
    else if (before) parent.insertBefore(node, fixed);
    else parent.append(node);
  }
}

/** Asks a question in a dialog; whether the answer was yes. */
export function ask(title, text, yes) {
  const dialog = find("ask");
  say(find("ask-title"), title);
  say(find("ask-text"), text);
  say(find("ask-yes"), yes);
  return new Promise((resolve) => {
    const done = (answer) => () => {
      dialog.onclose = null;
      dialog.close();
      resolve(answer);
    };
    find("ask-yes").onclick = done(true);
    find("ask-no").onclick = done(false);
    dialog.onclose = () => resolve(false);
    dialog.showModal();
  });
}
