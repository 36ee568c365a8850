/* Which words of a text are not in another one: Myers' shortest edit script over words (Algorithmica 1, 1986). */

const difference = (() => {
  const MOST_WORDS = 4000;
  const MOST_EDITS = 600;

  function words(text) {
    return text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];
  }

  /** For each word of `b` whether it is kept from `a`. */
  function kept(a, b) {
    const found = new Uint8Array(b.length);
    let start = 0;
    let endA = a.length;
    let endB = b.length;
    while (start < endA && start < endB && a[start] === b[start]) found[start++] = 1;
    while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) {
      endA -= 1;
      endB -= 1;
      found[endB] = 1;
    }
    const n = endA - start;
    const m = endB - start;
    if (!n || !m || n > MOST_WORDS || m > MOST_WORDS) return found;
    const most = Math.min(n + m, MOST_EDITS);
    const reach = new Int32Array(2 * most + 3);
    const at = most + 1;
    const trace = [];
    for (let edits = 0; edits <= most; edits += 1) {
      trace.push(reach.slice(at - edits - 1, at + edits + 2));
      for (let k = -edits; k <= edits; k += 2) {
        const down = k === -edits || (k !== edits && reach[at + k - 1] < reach[at + k + 1]);
        let x = down ? reach[at + k + 1] : reach[at + k - 1] + 1;
        let y = x - k;
        while (x < n && y < m && a[start + x] === b[start + y]) {
          x += 1;
          y += 1;
        }
        reach[at + k] = x;
        if (x >= n && y >= m) {
          back(found, trace, start, n, m);
          return found;
        }
      }
    }
    return found;
  }

  function back(found, trace, start, n, m) {
    let x = n;
    let y = m;
    for (let edits = trace.length - 1; edits >= 0; edits -= 1) {
      const reach = trace[edits];
      const at = edits + 1;
      const k = x - y;
      const down = k === -edits || (k !== edits && reach[at + k - 1] < reach[at + k + 1]);
      const before = down ? k + 1 : k - 1;
      const fromX = edits ? reach[at + before] : 0;
      const fromY = edits ? fromX - before : 0;
      while (x > fromX && y > fromY) {
        x -= 1;
        y -= 1;
        found[start + y] = 1;
      }
      x = fromX;
      y = fromY;
    }
  }

  /** The text as nodes; runs of words that the other text does not have stand in `mark` elements. */
  function marked(text, other) {
    const own = words(text);
    const same = kept(words(other), own);
    const nodes = [];
    let run = '';
    let marking = false;
    const flush = () => {
      if (run) nodes.push(marking ? page.element('mark', {}, run) : run);
      run = '';
    };
    own.forEach((word, index) => {
      const mark = !same[index] && (marking || word.trim() !== '');
      if (mark !== marking) {
        flush();
        marking = mark;
      }
      run += word;
    });
    flush();
    return nodes;
  }

  return { marked };
})();
