// One cursor for all charts of a page: where it is on the x axis, and which curve stands out.

/**
 * @typedef {object} Place
 * @property {number} x  in the values of the axis; NaN: nowhere, a curve stands out alone
 * @property {string | null} curve  the key of the curve that stands out
 */

/**
 * The charts that share a cursor.
 *
 * `move(from, place)` tells every other member, once a frame at most; null hides the cursor.
 */
export class CursorGroup {
  constructor() {
    /** @type {Set<(place: Place | null) => void>} */
    this.members = new Set();
    /** @type {{from: unknown, place: Place | null} | null} */
    this.next = null;
  }

  /**
   * @param {(place: Place | null) => void} member
   * @returns {() => void} leaves the group
   */
  join(member) {
    this.members.add(member);
    return () => this.members.delete(member);
  }

  /**
   * @param {((place: Place | null) => void) | null} from  is not told
   * @param {Place | null} place
   */
  move(from, place) {
    const waiting = this.next !== null;
    this.next = { from, place };
    if (waiting) return;
    requestAnimationFrame(() => {
      const next = this.next;
      this.next = null;
      if (next) for (const member of this.members) if (member !== next.from) member(next.place);
    });
  }
}
