//! Measures of objects against objects.

use mdm::Result;

use super::{ratio, same_length};

/// Areas of the objects of two instance images, and of their intersections.
///
/// It is built in one pass over the pixels and holds one entry for each pair of objects that touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectOverlap {
    predicted: Vec<u64>,
    truth: Vec<u64>,
    pairs: Vec<Pair>,
}

/// Indices of a true and a predicted object, and the pixels they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    truth: usize,
    predicted: usize,
    shared: u64,
}

impl ObjectOverlap {
    /// Counts two instance images of equal size: 0 is background, every other value is an object, connected or not.
    ///
    /// # Errors
    /// [`mdm::Error::Invalid`] where the sizes differ.
    pub fn new(prediction: &[u32], truth: &[u32]) -> Result<Self> {
        same_length(prediction.len(), truth.len())?;
        let (predicted_ids, truth_ids) = (ids(prediction), ids(truth));
        let index = |ids: &[u32], id: u32| ids.binary_search(&id).ok();
        let mut overlap = Self {
            predicted: vec![0; predicted_ids.len()],
            truth: vec![0; truth_ids.len()],
            pairs: Vec::new(),
        };
        let mut runs = prediction.iter().zip(truth).peekable();
        while let Some(run) = runs.next() {
            let mut length = 1;
            while runs.next_if_eq(&run).is_some() {
                length += 1;
            }
            let predicted = index(&predicted_ids, *run.0);
            let truth = index(&truth_ids, *run.1);
            if let Some(predicted) = predicted {
                overlap.predicted[predicted] += length;
            }
            if let Some(truth) = truth {
                overlap.truth[truth] += length;
            }
            if let (Some(predicted), Some(truth)) = (predicted, truth) {
                overlap.pairs.push(Pair { truth, predicted, shared: length });
            }
        }
        overlap.pairs.sort_unstable_by_key(|pair| (pair.truth, pair.predicted));
        overlap.pairs.dedup_by(|next, kept| {
            let same = (next.truth, next.predicted) == (kept.truth, kept.predicted);
            if same {
                kept.shared += next.shared;
            }
            same
        });
        Ok(overlap)
    }

    /// Object-level Dice of the GlaS challenge (Sirinukunwattana et al. 2017).
    ///
    /// Each object is compared with the one that covers most of it (the first of equals; none counts as 0), and weighs
    /// as much as its share of its image's object area; the result is the mean of both directions.
    pub fn object_dice(&self) -> f64 {
        match (self.predicted.is_empty(), self.truth.is_empty()) {
            (true, true) => 1.0,
            (true, false) | (false, true) => 0.0,
            (false, false) => {
                let truth = self.pairs.iter().map(|pair| (pair.truth, pair.predicted, pair.shared));
                let predicted = self.pairs.iter().map(|pair| (pair.predicted, pair.truth, pair.shared));
                let from_truth = weighted_dice(&self.truth, &self.predicted, truth);
                let from_prediction = weighted_dice(&self.predicted, &self.truth, predicted);
                (from_truth + from_prediction) / 2.0
            }
        }
    }

    /// Aggregated Jaccard index of the MoNuSeg challenge (Kumar et al. 2017).
    ///
    /// Each true object is matched with the predicted object of largest intersection over union (the first of equals),
    /// which others may be matched with too. Intersections and unions of the matches are summed; predicted objects that
    /// were never matched, and true ones that nothing touches, are added to the union.
    pub fn aji(&self) -> f64 {
        let mut matched = vec![false; self.predicted.len()];
        let (mut shared, mut union) = (0, 0);
        let mut rest = &self.pairs[..];
        for (object, &area) in self.truth.iter().enumerate() {
            let (candidates, others) = rest.split_at(rest.partition_point(|pair| pair.truth == object));
            rest = others;
            let union_of = |pair: &Pair| area + self.predicted[pair.predicted] - pair.shared;
            let best = candidates.iter().reduce(|best, pair| {
                let better = u128::from(pair.shared) * u128::from(union_of(best))
                    > u128::from(best.shared) * u128::from(union_of(pair));
                if better { pair } else { best }
            });
            match best {
                Some(pair) => {
                    matched[pair.predicted] = true;
                    shared += pair.shared;
                    union += union_of(pair);
                }
                None => union += area,
            }
        }
        let unmatched = self.predicted.iter().zip(&matched).filter(|(_, matched)| !**matched);
        ratio(shared, union + unmatched.map(|(area, _)| area).sum::<u64>())
    }
}

/// Dice of each object with the partner that covers most of it, weighted by the object's share of all area.
///
/// `pairs` are (object, partner, shared pixels), partners of one object ascending.
fn weighted_dice(
    areas: &[u64],
    partner_areas: &[u64],
    pairs: impl Iterator<Item = (usize, usize, u64)>,
) -> f64 {
    let mut best = vec![(0, 0); areas.len()];
    for (object, partner, shared) in pairs {
        if shared > best[object].0 {
            best[object] = (shared, partner_areas[partner]);
        }
    }
    let total = areas.iter().sum::<u64>() as f64;
    let dice = |(&area, &(shared, partner)): (&u64, &(u64, u64))| {
        area as f64 / total * (2 * shared) as f64 / (area + partner) as f64
    };
    areas.iter().zip(&best).map(dice).sum()
}

/// The values but 0 that occur, ascending.
fn ids(image: &[u32]) -> Vec<u32> {
    let mut ids: Vec<u32> = image.chunk_by(|a, b| a == b).map(|run| run[0]).filter(|&id| id > 0).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
