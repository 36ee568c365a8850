'use strict';

/* What every page shares: data that the page carries, and elements made of text. */

const page = {
  /** The JSON of an element. */
  embedded(id) {
    return JSON.parse(document.getElementById(id).textContent);
  },

  /** Text that was packed as gzip in base64. */
  async unpacked(text) {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let index = 0; index < bytes.length; index += 1) bytes[index] = binary.charCodeAt(index);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Response(stream).text();
  },

  /** An element with attributes, and children that are elements or text: text is never read as markup. */
  element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === 'function') made.addEventListener(name, value);
      else if (value === true) made.setAttribute(name, '');
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  },
};
