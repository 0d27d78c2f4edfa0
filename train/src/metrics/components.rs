//! Connected components.

use mdm::{Error, Result};

/// Which neighbours of a pixel are connected to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connectivity {
    /// Those that share an edge.
    Four,
    /// Those that share an edge or a corner.
    Eight,
}

/// The components of a mask, or the regions of a label image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Components {
    /// 0 outside, else the component's number from 1 on, in the order of their first pixels.
    pub labels: Vec<u32>,
    /// Number of components.
    pub count: u32,
}

/// Finds the connected components of a row-major mask of `width` columns.
///
/// # Errors
/// [`Error::Invalid`] where the mask is not a whole number of rows, or has 2^32 pixels or more.
pub fn components(mask: &[bool], width: usize, connectivity: Connectivity) -> Result<Components> {
    regions(mask, width, connectivity)
}

/// Finds the connected regions of equal values in a row-major image of `width` columns; the default value (0, false) is outside.
///
/// # Errors
/// As [`components`].
pub fn regions<T: Copy + Default + PartialEq>(
    values: &[T],
    width: usize,
    connectivity: Connectivity,
) -> Result<Components> {
    if values.is_empty() {
        return Ok(Components { labels: Vec::new(), count: 0 });
    }
    if width == 0 || !values.len().is_multiple_of(width) {
        return Err(Error::invalid("width", format!("{} pixels are no rows of {width}", values.len())));
    }
    if u32::try_from(values.len()).is_err() {
        return Err(Error::invalid("image", format!("{} pixels are too many to label", values.len())));
    }
    let mut labels = vec![0_u32; values.len()];
    // `parents[label]` is a smaller label of the same component, or the label itself.
    let mut parents = vec![0_u32];
    for at in 0..values.len() {
        let value = values[at];
        if value == T::default() {
            continue;
        }
        let column = at % width;
        let (left, right) = (column > 0, column + 1 < width && connectivity == Connectivity::Eight);
        let corner = left && connectivity == Connectivity::Eight;
        let neighbours = [
            left.then(|| at - 1),
            (corner && at >= width).then(|| at - width - 1),
            (at >= width).then(|| at - width),
            (right && at >= width).then(|| at - width + 1),
        ];
        let mut label = 0;
        for neighbour in neighbours.into_iter().flatten() {
            if values[neighbour] == value {
                let known = labels[neighbour];
                label = if label == 0 { known } else { join(&mut parents, label, known) };
            }
        }
        if label == 0 {
            label = parents.len() as u32;
            parents.push(label);
        }
        labels[at] = label;
    }
    // Labels rise in raster order and parents are smaller, so one pass numbers the components by their first pixel.
    let mut count = 0;
    let mut numbers = vec![0_u32; parents.len()];
    for label in 1..parents.len() {
        numbers[label] = if parents[label] as usize == label {
            count += 1;
            count
        } else {
            numbers[parents[label] as usize]
        };
    }
    for label in &mut labels {
        *label = numbers[*label as usize];
    }
    Ok(Components { labels, count })
}

fn root(parents: &mut [u32], mut label: u32) -> u32 {
    while parents[label as usize] != label {
        let above = parents[parents[label as usize] as usize];
        parents[label as usize] = above;
        label = above;
    }
    label
}

fn join(parents: &mut [u32], a: u32, b: u32) -> u32 {
    let (a, b) = (root(parents, a), root(parents, b));
    let (small, large) = (a.min(b), a.max(b));
    parents[large as usize] = small;
    small
}
