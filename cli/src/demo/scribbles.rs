//! Labels as a person would make them in two minutes: a few spots painted exactly, a few strokes, the rest left alone.

use super::drawing::Field;
use super::random::Random;
use mdm_images::UNLABELLED;

/// Tries for a stroke before another start is chosen.
const STEPS: usize = 60;

/// Radius of a spot that is painted exactly, in pixels.
const SPOT: f32 = 17.0;

/// Labels in round spots, where they show the borders, and in strokes on nuclei and on background; everything else is
/// unlabelled.
pub(crate) fn scribble(field: &Field, seed: u64, spots: usize, strokes: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut labels = vec![UNLABELLED; field.truth.len()];
    for _ in 0..spots {
        spot(field, &mut random, &mut labels);
    }
    for class in [0, 1] {
        let mut drawn = 0;
        for _ in 0..100 * strokes {
            if drawn == strokes {
                break;
            }
            drawn += usize::from(stroke(field, &mut random, class, &mut labels));
        }
    }
    labels
}

/// Paints a spot around a place on a nucleus.
fn spot(field: &Field, random: &mut Random, labels: &mut [u8]) {
    let mut centre = (0.0, 0.0);
    for _ in 0..200 {
        centre = (random.unit() * field.width as f32, random.unit() * field.height as f32);
        if inside(field, centre.0, centre.1, 1) {
            break;
        }
    }
    for (at, (label, truth)) in labels.iter_mut().zip(&field.truth).enumerate() {
        let (x, y) = ((at % field.width) as f32, (at / field.width) as f32);
        if (x - centre.0).hypot(y - centre.1) < SPOT {
            *label = *truth;
        }
    }
}

/// Draws one stroke that stays inside its class; false where it would be too short to be worth it.
fn stroke(field: &Field, random: &mut Random, class: u8, labels: &mut [u8]) -> bool {
    let (width, height) = (field.width as f32, field.height as f32);
    let (mut x, mut y) = (random.unit() * width, random.unit() * height);
    let mut angle = random.between(0.0, std::f32::consts::TAU);
    let mut path = Vec::new();
    for _ in 0..STEPS {
        if !inside(field, x, y, class) {
            break;
        }
        path.push((x as usize, y as usize));
        angle += 0.25 * random.normal();
        x += angle.cos();
        y += angle.sin();
    }
    if path.len() < 8 {
        return false;
    }
    for (x, y) in path {
        for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            if x + dx < field.width && y + dy < field.height {
                labels[(y + dy) * field.width + x + dx] = class;
            }
        }
    }
    true
}

/// Whether the pen, two pixels wide, touches nothing but the class.
fn inside(field: &Field, x: f32, y: f32, class: u8) -> bool {
    if x < 0.0 || y < 0.0 {
        return false;
    }
    let (x, y) = (x as usize, y as usize);
    x + 1 < field.width
        && y + 1 < field.height
        && [(0, 0), (1, 0), (0, 1), (1, 1)]
            .iter()
            .all(|(dx, dy)| field.truth[(y + dy) * field.width + x + dx] == class)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::draw_nuclei;

    #[test]
    fn scribbles_are_sparse_and_never_wrong() {
        let field = draw_nuclei(3, 200, 200, 25);
        let labels = scribble(&field, 5, 3, 12);
        assert!(labels.iter().zip(&field.truth).all(|(label, truth)| *label == UNLABELLED || label == truth));
        for class in [0, 1] {
            let count = labels.iter().filter(|label| **label == class).count();
            assert!((300..6000).contains(&count), "{count} pixels of class {class}");
        }
    }
}
