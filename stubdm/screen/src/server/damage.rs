//! The parts of the picture that a viewer has not seen yet.

use super::Rect;

/// Rectangles in the list of what a viewer has not seen yet, at most.
pub const DAMAGE_MAX: usize = 16;

/// Pixels without damage that a union of two rectangles may have: sending them costs less than
/// another rectangle.
const WASTE: u64 = 2048;

/// A list of at most [`DAMAGE_MAX`] rectangles, which cover all damage and perhaps more.
#[derive(Clone, Debug, Default)]
pub(super) struct Damage {
    rects: Vec<Rect>,
}

impl Damage {
    /// Adds a rectangle. Neighbours become one, and without room for another one, so do the two
    /// whose union has the least waste.
    pub(super) fn add(&mut self, rect: Rect) {
        self.insert(rect, Some(WASTE));
    }

    /// Forgets all damage.
    pub(super) fn clear(&mut self) {
        self.rects.clear();
    }

    /// Returns whether a part of `area` is damaged.
    pub(super) fn touches(&self, area: &Rect) -> bool {
        self.rects
            .iter()
            .any(|one| one.intersection(area).is_some())
    }

    /// Removes the damage within `area` and returns it. Rectangles that do not `fit` are left.
    pub(super) fn take(&mut self, area: &Rect, mut fits: impl FnMut(&Rect) -> bool) -> Vec<Rect> {
        let mut taken = Vec::new();
        for rect in std::mem::take(&mut self.rects) {
            match rect.intersection(area).filter(&mut fits) {
                Some(part) => {
                    let rest = rect.without(&part).into_iter().flatten();
                    rest.for_each(|rest| self.insert(rest, None));
                    taken.push(part);
                }
                None => self.insert(rect, None),
            }
        }
        taken
    }

    fn insert(&mut self, mut rect: Rect, waste: Option<u64>) {
        if rect.area() == 0 || self.rects.iter().any(|one| one.contains(&rect)) {
            return;
        }
        loop {
            self.rects.retain(|one| !rect.contains(one));
            let growth = |one: &Rect| {
                let union = rect.union(one).area();
                union.saturating_sub(rect.area() + one.area())
            };
            let all = self.rects.iter().enumerate();
            let best = all.map(|(at, one)| (growth(one), at)).min();
            let full = self.rects.len() >= DAMAGE_MAX;
            match best {
                Some((growth, at)) if full || waste.is_some_and(|waste| growth <= waste) => {
                    rect = rect.union(&self.rects.swap_remove(at));
                }
                _ => break,
            }
        }
        self.rects.push(rect);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rect(x: u16, y: u16, width: u16, height: u16) -> Rect {
        Rect {
            x,
            y,
            width,
            height,
        }
    }

    fn covers(rects: &[Rect], x: u16, y: u16) -> bool {
        rects.iter().any(|one| one.contains(&rect(x, y, 1, 1)))
    }

    #[test]
    fn rows_become_one_rectangle() {
        let mut damage = Damage::default();
        for y in 10..200 {
            damage.add(rect(100 + y % 7, y, 300, 1));
        }
        assert_eq!(damage.rects, [rect(100, 10, 306, 190)]);
        // A part of the list, and rectangles without pixels, change nothing.
        damage.add(rect(120, 20, 30, 30));
        damage.add(rect(900, 20, 0, 30));
        damage.add(rect(u16::MAX, 20, 4, 30));
        assert_eq!(damage.rects, [rect(100, 10, 306, 190)]);
        damage.add(rect(700, 700, 200, 200));
        assert_eq!(damage.rects.len(), 2);
        damage.add(rect(0, 0, 1000, 1000));
        assert_eq!(damage.rects, [rect(0, 0, 1000, 1000)]);
    }

    #[test]
    fn what_is_outside_of_the_area_stays() {
        let mut damage = Damage::default();
        damage.add(rect(0, 0, 300, 300));
        let area = rect(100, 100, 100, 100);
        assert!(damage.touches(&area));
        assert_eq!(damage.take(&area, |_| true), [area]);
        assert!(!damage.touches(&area));
        let left: u64 = damage.rects.iter().map(Rect::area).sum();
        assert_eq!(left, 300 * 300 - 100 * 100);
        // One that does not fit stays too.
        let all = rect(0, 0, 300, 300);
        assert_eq!(damage.take(&all, |_| false), []);
        assert_eq!(damage.take(&all, |_| true).len(), 4);
        assert!(damage.rects.is_empty());
    }

    proptest! {
        #[test]
        fn all_damage_is_covered_by_a_bounded_list(
            rects in prop::collection::vec((0u16..600, 0u16..600, 0u16..90, 0u16..90), 0..60),
            area in (0u16..600, 0u16..600, 0u16..600, 0u16..600),
            takes in any::<u8>(),
        ) {
            let (mut damage, mut seen) = (Damage::default(), Vec::new());
            let area = rect(area.0, area.1, area.2, area.3);
            for (at, (x, y, width, height)) in rects.iter().enumerate() {
                damage.add(rect(*x, *y, *width, *height));
                prop_assert!(damage.rects.len() <= DAMAGE_MAX);
                if at == usize::from(takes) {
                    seen.extend(damage.take(&area, |_| true));
                    prop_assert!(damage.rects.len() <= DAMAGE_MAX);
                }
            }
            prop_assert!(seen.iter().all(|one| area.contains(one)));
            let left = damage.rects;
            for (x, y, width, height) in rects {
                for (x, y) in [(x, y), (x + width / 2, y), (x, y + height / 2)] {
                    let damaged = width > 0 && height > 0;
                    prop_assert!(!damaged || covers(&left, x, y) || covers(&seen, x, y));
                }
            }
        }
    }
}
