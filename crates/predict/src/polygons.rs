//! Class maps as polygons, along the edges of pixels.

use std::collections::HashMap;

use halfseg_data::{IGNORE, LabelMap};

/// A closed line through corners of pixels, `[x, y]` from the upper left of the picture, each once. Two corners that
/// follow each other share a row or a column of corners, and three never do.
pub type Ring = Vec<[u32; 2]>;

/// Pixels of one class that hang together by their sides.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Polygon {
    /// Around all of them: clockwise on the screen, whose y axis points down.
    pub outer: Ring,
    /// Around what is of other classes inside, counterclockwise on the screen.
    pub holes: Vec<Ring>,
}

impl Polygon {
    /// How many pixels it has.
    pub fn pixels(&self) -> u64 {
        let rings = std::iter::once(&self.outer).chain(&self.holes);
        rings.map(|ring| area(ring)).sum::<i64>().unsigned_abs()
    }
}

/// All of a map that is of one class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClassPolygons {
    /// The class.
    pub class: u8,
    /// Its polygons, by their uppermost pixel, and the leftmost of these.
    pub polygons: Vec<Polygon>,
}

impl ClassPolygons {
    /// How many pixels the class has.
    pub fn pixels(&self) -> u64 {
        self.polygons.iter().map(Polygon::pixels).sum()
    }
}

/// Pixels of each class of `map`, by class; 255, which is no class, included.
pub fn class_pixels(map: &LabelMap) -> [u64; 256] {
    let mut pixels = [0; 256];
    map.data
        .iter()
        .for_each(|class| pixels[usize::from(*class)] += 1);
    pixels
}

/// The polygons of each class that `map` has, by class. Pixels without a class (255) are in none.
///
/// Nothing is smoothed: [`fill_polygons`] gives the map back. Pixels that meet at a corner alone are in two
/// polygons, and rings of one polygon may share a corner, so that each ring passes a corner once and polygons are
/// valid as the Simple Features of the OGC have it.
///
/// ```
/// use halfseg_data::LabelMap;
/// use halfseg_predict::polygons;
///
/// let data = vec![1, 1, 1, 1, 0, 1, 1, 1, 1];
/// let map = LabelMap { width: 3, height: 3, data };
/// let found = polygons(&map);
/// assert_eq!(found[0].polygons[0].outer, [[2, 1], [2, 2], [1, 2], [1, 1]]);
/// assert_eq!(found[1].polygons[0].holes, [[[2, 2], [2, 1], [1, 1], [1, 2]]]);
/// ```
pub fn polygons(map: &LabelMap) -> Vec<ClassPolygons> {
    let parts = parts(map);
    let mut traced = vec![false; map.data.len()];
    // By part, its polygon: parts are numbered by their first pixels.
    let mut found: HashMap<u32, (u8, Polygon)> = HashMap::new();
    let mut order = Vec::new();
    for (place, &class) in map.data.iter().enumerate() {
        let (x, y) = (place % map.width, place / map.width);
        let above = y > 0 && map.data[place - map.width] == class;
        if class == IGNORE || above || traced[place] {
            continue;
        }
        let part = parts[place];
        let mut rings = trace(map, (x, y), &mut traced);
        // Its outline, which begins at its first pixel, comes before its holes, but for those that share a corner
        // with it.
        rings.sort_by_key(|ring| area(ring) < 0);
        for ring in rings {
            if area(&ring) > 0 {
                let polygon = Polygon {
                    outer: ring,
                    holes: Vec::new(),
                };
                found.insert(part, (class, polygon));
                order.push(part);
            } else if let Some((_, polygon)) = found.get_mut(&part) {
                polygon.holes.push(ring);
            }
        }
    }
    let mut by_class: Vec<Vec<Polygon>> = vec![Vec::new(); usize::from(IGNORE)];
    for part in order {
        let (class, polygon) = found.remove(&part).expect("each part has one outline");
        by_class[usize::from(class)].push(polygon);
    }
    let classes = by_class.into_iter().enumerate();
    let present = classes.filter(|(_, polygons)| !polygons.is_empty());
    present
        .map(|(class, polygons)| ClassPolygons {
            class: class as u8,
            polygons,
        })
        .collect()
}

/// How many corners the rings of [`polygons`] have together, without tracing them: a map of noise has more of them
/// than pixels.
pub fn count_corners(map: &LabelMap) -> u64 {
    let at = |x: usize, y: usize| match (x < map.width, y < map.height) {
        (true, true) => map.data[y * map.width + x],
        _ => IGNORE,
    };
    let before = |i: usize| i.wrapping_sub(1);
    let mut corners = 0;
    for y in 0..=map.height {
        for x in 0..=map.width {
            let around = [
                at(before(x), before(y)),
                at(x, before(y)),
                at(x, y),
                at(before(x), y),
            ];
            for (i, &class) in around.iter().enumerate() {
                let is = |k: usize| around[(i + k) % 4] == class;
                corners += match (class != IGNORE, is(1), is(2), is(3)) {
                    // Alone beside its neighbours, or one of three, of which the middle one counts.
                    (true, false, _, false) | (true, true, false, true) => 1,
                    _ => 0,
                };
            }
        }
    }
    corners
}

/// Gives the pixels inside `polygons` the class `class`.
///
/// # Panics
/// If a corner is outside the map.
pub fn fill_polygons(map: &mut LabelMap, class: u8, polygons: &[Polygon]) {
    // Whether a row's inside begins or ends at the left side of a pixel.
    let stride = map.width + 1;
    let mut turns = vec![false; stride * map.height];
    let rings = polygons
        .iter()
        .flat_map(|polygon| std::iter::once(&polygon.outer).chain(&polygon.holes));
    for ring in rings {
        for (from, to) in sides(ring) {
            for &[x, y] in [from, to] {
                let inside = x as usize <= map.width && y as usize <= map.height;
                let (width, height) = (map.width, map.height);
                assert!(
                    inside,
                    "the corner ({x}, {y}) of a map of {width}x{height} pixels"
                );
            }
            if from[0] == to[0] {
                for y in from[1].min(to[1])..from[1].max(to[1]) {
                    turns[y as usize * stride + from[0] as usize] ^= true;
                }
            }
        }
    }
    for (row, turns) in map
        .data
        .chunks_exact_mut(map.width.max(1))
        .zip(turns.chunks_exact(stride))
    {
        let mut inside = false;
        for (pixel, turn) in row.iter_mut().zip(turns) {
            inside ^= turn;
            if inside {
                *pixel = class;
            }
        }
    }
}

/// Each corner with the next.
fn sides(ring: &[[u32; 2]]) -> impl Iterator<Item = (&[u32; 2], &[u32; 2])> {
    ring.iter().zip(ring.iter().cycle().skip(1))
}

/// Pixels inside a ring, negative for one around a hole.
fn area(ring: &[[u32; 2]]) -> i64 {
    let side = |(a, b): (&[u32; 2], &[u32; 2])| {
        let [[ax, ay], [bx, by]] = [a, b].map(|corner| corner.map(i64::from));
        ax * by - bx * ay
    };
    sides(ring).map(side).sum::<i64>() / 2
}

/// The number of the part that each pixel belongs to: pixels of one class that hang together by their sides.
fn parts(map: &LabelMap) -> Vec<u32> {
    fn root(parents: &mut [u32], mut part: u32) -> u32 {
        while parents[part as usize] != part {
            let above = parents[parents[part as usize] as usize];
            parents[part as usize] = above;
            part = above;
        }
        part
    }
    let width = map.width;
    let mut parents: Vec<u32> = Vec::new();
    let mut parts: Vec<u32> = Vec::with_capacity(map.data.len());
    for (place, class) in map.data.iter().enumerate() {
        let same = |other: usize| map.data[other] == *class;
        let left = (place % width > 0 && same(place - 1)).then(|| parts[place - 1]);
        let above = (place >= width && same(place - width)).then(|| parts[place - width]);
        parts.push(match (left, above) {
            (Some(left), Some(above)) => {
                let (left, above) = (root(&mut parents, left), root(&mut parents, above));
                parents[left.max(above) as usize] = left.min(above);
                left.min(above)
            }
            (Some(part), None) | (None, Some(part)) => part,
            (None, None) => {
                parents.push(parents.len() as u32);
                parents.len() as u32 - 1
            }
        });
    }
    for part in &mut parts {
        *part = root(&mut parents, *part);
    }
    parts
}

/// Where the walk along a pixel's upper, right, lower and left side leads, and what is to the left of it.
const AHEAD: [(isize, isize); 4] = [(1, 0), (0, 1), (-1, 0), (0, -1)];
const LEFT: [(isize, isize); 4] = [(0, -1), (1, 0), (0, 1), (-1, 0)];
/// The corner of the pixel that it ends at.
const END: [(u32, u32); 4] = [(1, 0), (1, 1), (0, 1), (0, 0)];

/// Walks along the sides of pixels with the part to the right, from the upper side of the pixel `start` until that
/// is reached again, and notes in `traced` the pixels whose upper side it passed.
///
/// Where two pixels of the class meet at a corner, the walk turns right and so stays with its own; a corner that it
/// passes twice divides it into two rings.
fn trace(map: &LabelMap, start: (usize, usize), traced: &mut [bool]) -> Vec<Ring> {
    let class = map.data[start.1 * map.width + start.0];
    let beside = |(x, y): (usize, usize), (dx, dy): (isize, isize)| {
        let (x, y) = (x.checked_add_signed(dx)?, y.checked_add_signed(dy)?);
        let is_inside = x < map.width && y < map.height;
        (is_inside && map.data[y * map.width + x] == class).then_some((x, y))
    };
    let mut rings = Vec::new();
    let mut ring: Ring = Vec::new();
    // Corners where two pixels of the class meet, and their places in the ring.
    let mut shared: HashMap<[u32; 2], usize> = HashMap::new();
    let (mut pixel, mut side) = (start, 0);
    loop {
        if side == 0 {
            traced[pixel.1 * map.width + pixel.0] = true;
        }
        let corner = [pixel.0 as u32 + END[side].0, pixel.1 as u32 + END[side].1];
        let (ahead, left) = (AHEAD[side], LEFT[side]);
        let across = beside(pixel, (ahead.0 + left.0, ahead.1 + left.1));
        match (beside(pixel, ahead), across) {
            (None, meets) => {
                side = (side + 1) % 4;
                let before = meets.and_then(|_| shared.get(&corner).copied());
                if let Some(place) = before {
                    let cut = ring.split_off(place);
                    cut.iter().for_each(|corner| {
                        shared.remove(corner);
                    });
                    rings.push(cut);
                }
                if meets.is_some() {
                    shared.insert(corner, ring.len());
                }
                ring.push(corner);
            }
            (Some(next), None) => pixel = next,
            (Some(_), Some(across)) => {
                (pixel, side) = (across, (side + 3) % 4);
                ring.push(corner);
            }
        }
        if (pixel, side) == (start, 0) {
            rings.push(ring);
            return rings;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map of rows of letters: `.` is class 0, `a` class 1, and so on; `-` is without a class.
    fn map(rows: &[&str]) -> LabelMap {
        let class = |letter: u8| match letter {
            b'.' => 0,
            b'-' => IGNORE,
            letter => letter - b'a' + 1,
        };
        LabelMap {
            width: rows[0].len(),
            height: rows.len(),
            data: rows.iter().flat_map(|row| row.bytes()).map(class).collect(),
        }
    }

    fn class(map: &LabelMap, class: u8) -> Vec<Polygon> {
        let mut found = polygons(map).into_iter();
        found.find(|found| found.class == class).unwrap().polygons
    }

    /// Everything that is promised of the polygons of a map.
    fn check(map: &LabelMap) {
        let found = polygons(map);
        let mut filled = LabelMap::filled(map.width, map.height, [IGNORE]);
        let pixels = class_pixels(map);
        let mut corners = 0;
        for one in &found {
            assert_eq!(one.pixels(), pixels[usize::from(one.class)]);
            fill_polygons(&mut filled, one.class, &one.polygons);
            for polygon in &one.polygons {
                assert!(area(&polygon.outer) > 0);
                assert!(polygon.holes.iter().all(|hole| area(hole) < 0));
                let rings = std::iter::once(&polygon.outer).chain(&polygon.holes);
                for ring in rings {
                    corners += ring.len() as u64;
                    let once: std::collections::BTreeSet<_> = ring.iter().collect();
                    assert_eq!(once.len(), ring.len(), "a corner twice in {ring:?}");
                    // Sides turn at each corner.
                    let flat = |(from, to): (&[u32; 2], &[u32; 2])| {
                        assert!((from[0] == to[0]) != (from[1] == to[1]), "{ring:?}");
                        from[1] == to[1]
                    };
                    let flat: Vec<bool> = sides(ring).map(flat).collect();
                    assert!((0..flat.len()).all(|i| flat[i] != flat[(i + 1) % flat.len()]));
                }
            }
        }
        assert_eq!(&filled, map);
        assert_eq!(count_corners(map), corners);
        let present = pixels[..255].iter().filter(|pixels| **pixels > 0).count();
        assert_eq!(found.len(), present);
    }

    #[test]
    fn holes_belong_to_what_is_around_them() {
        let map = map(&[
            "aaaaa.", //
            "a...a.", "a.a.a.", "a...a.", "aaaaa.",
        ]);
        let found = class(&map, 1);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].outer, [[5, 0], [5, 5], [0, 5], [0, 0]]);
        assert_eq!(found[0].holes, [[[4, 4], [4, 1], [1, 1], [1, 4]]]);
        assert_eq!(found[1].outer, [[3, 2], [3, 3], [2, 3], [2, 2]]);
        assert_eq!(found[1].holes, [[[0; 2]; 0]; 0]);
        assert_eq!(
            found.iter().map(Polygon::pixels).collect::<Vec<_>>(),
            [16, 1]
        );
        check(&map);
    }

    #[test]
    fn pixels_that_meet_at_a_corner_are_two_polygons_or_two_rings() {
        let apart = map(&["a.", ".a"]);
        assert_eq!(class(&apart, 1).len(), 2);
        check(&apart);
        // Two holes that meet, and one that meets the outside.
        let holes = map(&["aaaa", "a.aa", "aa.a", "aaaa"]);
        assert_eq!(class(&holes, 1)[0].holes.len(), 2);
        check(&holes);
        let pinched = map(&["aaa.", "a.a.", "aa.."]);
        let found = class(&pinched, 1);
        assert_eq!((found.len(), found[0].holes.len()), (1, 1));
        check(&pinched);
    }

    #[test]
    fn maps_without_a_class_have_no_polygons() {
        assert_eq!(polygons(&map(&["--", "--"])), []);
        check(&map(&["-a-", "aaa"]));
        check(&map(&["a"]));
    }

    /// Small ones have every way in which corners can meet; larger ones hang together in winding parts.
    #[test]
    fn polygons_of_any_map_fill_it_again() {
        for bits in 0..1u32 << 12 {
            let data = (0..12).map(|i| (bits >> i & 1) as u8).collect();
            check(&LabelMap {
                width: 4,
                height: 3,
                data,
            });
        }
        let mut state = 1u64;
        let mut next = |below: u64| {
            // Knuth's MMIX generator.
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for round in 0..300 {
            let (width, height) = (1 + next(24) as usize, 1 + next(24) as usize);
            let classes = 2 + round % 4;
            let pixel = |_| match next(classes + 1) {
                class if class == classes && round % 3 == 0 => IGNORE,
                class => (class % classes) as u8,
            };
            check(&LabelMap {
                width,
                height,
                data: (0..width * height).map(pixel).collect(),
            });
        }
    }

    #[test]
    #[should_panic(expected = "the corner (3, 0) of a map of 2x1 pixels")]
    fn corners_outside_a_map_are_refused() {
        let polygon = Polygon {
            outer: vec![[3, 0], [3, 1], [0, 1], [0, 0]],
            holes: Vec::new(),
        };
        fill_polygons(&mut LabelMap::filled(2, 1, [0]), 1, &[polygon]);
    }
}
