//! A network of its own from the labels that are there.

use mdm::{Control, Result};

use super::HeadFitter;
use crate::tune::picture::{Labelled, Picture};
use crate::tune::run::{features_of, tune_pictures};
use crate::tune::{TuneOptions, TuneProgress, TuneReport};

impl HeadFitter {
    /// Tunes a copy of the backbone, with a head of its own, on all labels: slower than [`fit`](Self::fit), minutes instead of
    /// seconds, and more accurate. The fitter stays as it is, with its backbone and its heads.
    ///
    /// All labelled pixels are learnt from, not only those that are sampled. Classes, features (at their first timestep), scale and
    /// intensity range are the fitter's, whatever the options say. `report` is called after each step. Meanwhile the labelled
    /// images take 4 bytes a value at the model's scale.
    ///
    /// # Errors
    /// Those of [`tune`](crate::tune::tune).
    pub fn tune(
        &mut self,
        options: &TuneOptions,
        report: &mut dyn FnMut(TuneProgress),
        control: &Control<'_>,
    ) -> Result<TuneReport> {
        let options = TuneOptions {
            microns_per_pixel: None,
            range: Some(self.range()),
            features: Some(self.features.config().clone()),
            ..options.clone()
        };
        features_of(&self.model, &options)?;
        let channels = self.model.metadata().unet.in_channels;
        let (mut pictures, mut unlabelled_images) = (Vec::new(), Vec::new());
        for (name, image) in &self.images {
            control.check()?;
            if image.class_pixels.iter().all(|&pixels| pixels == 0) {
                unlabelled_images.push(name.clone());
                continue;
            }
            let labelled = Labelled {
                name: name.clone(),
                size: (image.grid.height(), image.grid.width()),
                ratio: image.ratio,
                labels: image.labels.labels(),
                microns_per_pixel: image.microns_per_pixel,
                intensities: image.intensities.clone(),
            };
            pictures.push(Picture::of(&mut &image.pixels, labelled, channels)?);
        }
        let (model, classes) = (&self.model, self.classes.clone());
        let tuned = tune_pictures(model, &self.device, &pictures, classes, &options, report, control)?;
        Ok(TuneReport { unlabelled_images, ..tuned })
    }
}
