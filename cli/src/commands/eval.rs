//! `mdm eval`: how well predicted labels agree with true ones.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use clap::Args;
use mdm_train::metrics::Scores;
use serde::Serialize;

use crate::error::{CliError, Result, failed, warn};
use crate::files::label_files;
use crate::labelled::{
    Known, LabelArguments, Look, Named, Objects, Verdict, labels_of, listed, object_numbers, stem,
};
use crate::output::{Table, print, print_json};
use mdm_images::{LabelNumbers, Numbers, UNLABELLED, UNLABELLED_WIDE, read_label_numbers};

const EXAMPLES: &str = "\
Labels are PNG or TIFF files whose pixels are class indices; 0 is background. Files are paired by name without the ending, _mask, _label and the like. Every true label image needs a prediction; images without any label are left out.

  dice         overlap of the foreground (every class but 0): 2 |P and T| / (|P| + |T|)
  iou          the same as intersection over union
  object_dice  Dice object by object, as in the GlaS challenge
  aji          aggregated Jaccard index, as in the MoNuSeg challenge
  mean_iou     intersection over union of each class, averaged over the classes

Objects are connected regions of the foreground; with --objects the truth numbers them, and predictions may be classes or object numbers. The deviation is the one between images (divisor n - 1).

Examples:
  mdm eval --prediction out/ --truth labels/
  mdm eval --prediction out/ --truth labels/ --json > scores.json";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Label file or folder of them, as `mdm segment` wrote them
    #[arg(long, value_name = "PATH")]
    prediction: PathBuf,

    /// Label file or folder of them, as people drew them
    #[arg(long, value_name = "PATH")]
    truth: PathBuf,

    #[command(flatten)]
    reading: LabelArguments,

    /// Leave out pixels whose truth is this index ("none": leave out none)
    #[arg(long, value_name = "INDEX", default_value = "255", value_parser = ignored)]
    ignore: Ignored,

    /// Print JSON: mean, std and images
    #[arg(long, conflicts_with = "csv")]
    json: bool,

    /// Print CSV: a line an image, then mean and std
    #[arg(long)]
    csv: bool,
}

/// The index of pixels that do not count.
#[derive(Clone, Copy, Debug)]
struct Ignored(Option<u8>);

fn ignored(text: &str) -> Result<Ignored, String> {
    if text == "none" {
        return Ok(Ignored(None));
    }
    text.parse().map(|index| Ignored(Some(index))).map_err(|_| "must be 0 to 255, or \"none\"".to_owned())
}

/// A measure's name and its value.
type Measure = (&'static str, fn(&Scores) -> f64);

const MEASURES: [Measure; 5] = [
    ("dice", |scores| scores.dice),
    ("iou", |scores| scores.iou),
    ("object_dice", |scores| scores.object_dice),
    ("aji", |scores| scores.aji),
    ("mean_iou", |scores| scores.mean_iou),
];

#[derive(Serialize)]
struct Report {
    mean: BTreeMap<&'static str, f64>,
    std: BTreeMap<&'static str, f64>,
    images: Vec<ImageReport>,
    /// Images whose truth labels nothing.
    left_out: Vec<Failure>,
    /// True label images without a usable prediction.
    failed: Vec<Failure>,
}

#[derive(Serialize)]
struct ImageReport {
    name: String,
    #[serde(flatten)]
    scores: BTreeMap<&'static str, f64>,
}

#[derive(Serialize)]
struct Failure {
    name: String,
    error: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let truths = label_files(&arguments.truth)?;
    let predictions = Predictions::new(&arguments.prediction, &truths)?;
    let reading = &arguments.reading;
    let truth_survey = Survey::of(truths.iter().map(PathBuf::as_path), reading, arguments.ignore);
    let predicted = truths.iter().filter_map(|truth| predictions.of(truth).ok());
    // Colours are how people draw labels; predictions hold indices.
    let prediction_survey = Survey::of(predicted, &LabelArguments::default(), Ignored(None));
    truth_survey.check_truth(arguments, &prediction_survey)?;
    let masks = Masks::between(&prediction_survey, &truth_survey, arguments.ignore);
    if let Some(note) = masks.note(reading, &prediction_survey, &truth_survey) {
        warn(note);
    }
    if truth_survey.transparent > 0 {
        warn(format!(
            "{}: transparent pixels are unlabelled and left out ({} files have some)",
            arguments.truth.display(),
            truth_survey.transparent
        ));
    }
    let (mut names, mut scores, mut failures, mut left_out) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for truth in &truths {
        let compared = predictions
            .of(truth)
            .and_then(|prediction| score(prediction, truth, arguments, &masks, &truth_survey));
        match compared {
            Ok(Some(of_image)) => {
                names.push(stem(truth));
                scores.push(of_image);
            }
            Ok(None) => {
                let reason = "nothing is labelled, so there is nothing to compare";
                warn(format!("{}: {reason}; it is left out", truth.display()));
                left_out.push(Failure { name: stem(truth), error: reason.to_owned() });
            }
            Err(error) => {
                eprintln!("error: {error}");
                failures.push(Failure { name: stem(truth), error: error.to_string() });
            }
        }
    }
    if scores.is_empty() {
        let reason = if failures.is_empty() {
            "the truth labels nothing in any image"
        } else {
            "there is no pair of label files of the same name and size"
        };
        return Err(CliError::Failed(format!(
            "no image could be compared in {} and {}: {reason}",
            arguments.prediction.display(),
            arguments.truth.display()
        )));
    }
    let done = if failures.is_empty() { Ok(()) } else { Err(CliError::Reported) };
    let (mean, std) = Scores::mean_and_deviation(&scores);
    if arguments.json {
        let images = names
            .into_iter()
            .zip(&scores)
            .map(|(name, scores)| ImageReport { name, scores: by_name(scores) })
            .collect();
        print_json(&Report { mean: by_name(&mean), std: by_name(&std), images, left_out, failed: failures })?;
        return done;
    }
    let mut rows: Vec<(String, &Scores)> = names.into_iter().zip(&scores).collect();
    let count = scores.len();
    if arguments.csv {
        rows.extend([("mean".to_owned(), &mean), ("std".to_owned(), &std)]);
        print(&csv(&rows))?;
    } else {
        rows.extend([(format!("mean of {count}"), &mean), ("std".to_owned(), &std)]);
        print(&table(&rows).to_string())?;
    }
    done
}

/// Predictions by the name of their image.
struct Predictions {
    /// The one prediction, whatever its name, where one file is compared with one.
    only: Option<PathBuf>,
    named: Named,
    folder: PathBuf,
}

impl Predictions {
    fn new(prediction: &Path, truths: &[PathBuf]) -> Result<Self> {
        let files = label_files(prediction)?;
        let only = (prediction.is_file() && truths.len() == 1).then(|| prediction.to_owned());
        let found = Self { only, named: Named::new(&files, Known::AsLabels), folder: prediction.to_owned() };
        if found.only.is_none() {
            let used: HashSet<&Path> = truths
                .iter()
                .filter_map(|truth| found.named.partner(truth, Known::AsLabels).ok().flatten())
                .collect();
            let extra = files.iter().filter(|file| !used.contains(file.as_path())).count();
            if extra > 0 {
                warn(format!(
                    "{}: {extra} predictions have no true labels and do not count",
                    prediction.display()
                ));
            }
        }
        Ok(found)
    }

    fn of(&self, truth: &Path) -> Result<&Path> {
        if let Some(only) = &self.only {
            return Ok(only);
        }
        self.named.partner(truth, Known::AsLabels)?.ok_or_else(|| {
            failed(
                truth,
                format!(
                    "has no prediction: there is no {}.png in {}",
                    labels_of(truth).unwrap_or_else(|| stem(truth)),
                    self.folder.display()
                ),
            )
        })
    }
}

/// What all files of one side hold together. Files that cannot be read are told of where they are compared.
struct Survey {
    /// Indices that occur in any file, 255 and what is to be ignored included.
    present: [bool; 256],
    /// Files with no other values than 0 and 255.
    masks: Vec<PathBuf>,
    looks: Vec<(PathBuf, Look)>,
    /// Files with transparent pixels.
    transparent: usize,
}

impl Survey {
    fn of<'a>(files: impl Iterator<Item = &'a Path>, reading: &LabelArguments, ignore: Ignored) -> Self {
        let mut survey = Self { present: [false; 256], masks: Vec::new(), looks: Vec::new(), transparent: 0 };
        for file in files {
            let Ok(labels) = reading.numbers(file) else { continue };
            survey.transparent += usize::from(labels.transparent > 0);
            if reading.objects.is_none()
                && let Ok(look) = Look::of(&labels)
            {
                survey.looks.push((file.to_owned(), look));
            }
            let Numbers::Bytes(values) = labels.numbers else { continue };
            let mut here = [false; 256];
            for value in values {
                here[usize::from(value)] = true;
            }
            let only_masked =
                here[0] && here[usize::from(UNLABELLED)] && here.iter().filter(|seen| **seen).count() == 2;
            if only_masked && labels.transparent == 0 && ignore.0.is_some() {
                survey.masks.push(file.to_owned());
            }
            for (present, here) in survey.present.iter_mut().zip(here) {
                *present |= here;
            }
        }
        survey
    }

    fn verdict(&self) -> Verdict {
        let looks: Vec<Look> = self.looks.iter().map(|(_, look)| look.clone()).collect();
        Verdict::on(&looks)
    }

    /// Classes above 0 that occur, 255 left out.
    fn foreground(&self) -> Vec<usize> {
        (1..usize::from(UNLABELLED)).filter(|class| self.present[*class]).collect()
    }

    /// Whether 0 and 255 are all there is.
    fn is_mask(&self) -> bool {
        self.present[usize::from(UNLABELLED)] && self.foreground().is_empty()
    }

    /// Refuses truth that would be scored without meaning anything.
    fn check_truth(&self, arguments: &Arguments, predictions: &Self) -> Result<()> {
        let truth = arguments.truth.as_path();
        if arguments.reading.objects.is_none() {
            let known = self.foreground();
            let predicted = known.iter().filter(|class| predictions.present[**class]).count();
            // Predictions of the same numbers may be classes that lie in one piece each.
            let alike = predicted * 2 >= known.len();
            let path = self.looks.first().map_or(truth, |(path, _)| path);
            let objects = "looks like an instance mask: each of its numbers is one object; --objects compares objects \
                           (--objects=rim where the predictions have a class for rims)";
            match self.verdict() {
                Verdict::Objects if !alike => return Err(failed(path, objects)),
                Verdict::Objects if predictions.verdict() == Verdict::Objects => {
                    warn(format!("{}: {objects}", path.display()));
                }
                Verdict::Picture => warn(format!("{}: {}", path.display(), Verdict::Picture.in_words())),
                Verdict::Objects | Verdict::Classes => {}
            }
            if let Some((path, _)) = self.looks.iter().find(|(_, look)| look.is_wide()) {
                return Err(failed(path, "holds numbers above 255; numbers of objects take --objects"));
            }
        }
        let unlabelled = usize::from(UNLABELLED);
        if arguments.ignore.0 == Some(UNLABELLED)
            && self.is_mask()
            && self.present[0]
            && self.transparent == 0
        {
            return Err(failed(
                truth,
                "holds only 0 and 255, and 255 means \"not labelled\", so that no foreground would be compared; \
                 --ignore none compares 255 as foreground",
            ));
        }
        if arguments.ignore.0 == Some(UNLABELLED) && !self.masks.is_empty() && self.present[unlabelled] {
            warn(format!(
                "{} of the true label files hold only 0 and 255 (\"not labelled\"), {} for example: their foreground is not \
                 compared; --ignore none compares 255 as foreground",
                self.masks.len(),
                self.masks[0].display()
            ));
        }
        Ok(())
    }
}

/// What 255 stands for where it is the foreground of a mask.
#[derive(Clone, Copy, Debug)]
struct Masks {
    /// In predictions.
    predicted: Option<u8>,
    /// In the truth.
    truth: Option<u8>,
}

impl Masks {
    /// Where one side holds masks of 0 and 255 and the other one foreground class, 255 is this class.
    fn between(prediction: &Survey, truth: &Survey, ignore: Ignored) -> Self {
        let only = |survey: &Survey| match survey.foreground().as_slice() {
            [class] => u8::try_from(*class).ok(),
            _ => None,
        };
        let mask = |survey: &Survey| survey.is_mask();
        let in_truth = (ignore.0 != Some(UNLABELLED))
            .then(|| if mask(truth) { only(prediction) } else { None })
            .flatten();
        Self { predicted: if mask(prediction) { only(truth) } else { None }, truth: in_truth }
    }

    /// What deserves to be said about numbers that do not match.
    fn note(&self, reading: &LabelArguments, prediction: &Survey, truth: &Survey) -> Option<String> {
        if let Some(class) = self.predicted {
            return Some(format!(
                "the predictions hold only 0 and 255; 255 is compared as class {class}, the truth's only one"
            ));
        }
        if let Some(class) = self.truth {
            return Some(format!(
                "the truth holds only 0 and 255; 255 is compared as class {class}, the predictions' only one"
            ));
        }
        if reading.objects.is_some() {
            return None;
        }
        let known = truth.foreground();
        let unknown: Vec<usize> =
            prediction.foreground().into_iter().filter(|class| !known.contains(class)).collect();
        (!unknown.is_empty() && !known.is_empty()).then(|| {
            format!(
                "the predictions hold the indices {} that the truth never has (it has {}): mean_iou counts them as wrong; do both \
                 number their classes alike?",
                listed(&unknown),
                listed(&known)
            )
        })
    }
}

/// Scores of one image; nothing where its truth labels no pixel.
fn score(
    prediction: &Path,
    truth: &Path,
    arguments: &Arguments,
    masks: &Masks,
    truths: &Survey,
) -> Result<Option<Scores>> {
    let predicted = read_label_numbers(prediction, None)?;
    let wanted = arguments.reading.numbers(truth)?;
    if (predicted.width, predicted.height) != (wanted.width, wanted.height) {
        return Err(failed(
            prediction,
            format!(
                "is {} x {} pixels, but {} is {} x {}; labels must have the size of their image",
                predicted.width,
                predicted.height,
                truth.display(),
                wanted.width,
                wanted.height
            ),
        ));
    }
    let width = wanted.width;
    if let Some(objects) = arguments.reading.objects {
        return numbered(objects, predicted, wanted, arguments.ignore);
    }
    let mut labels = wanted.into_classes(truth)?.values;
    let mut shown = predicted.into_classes(prediction)?.values;
    if let Some(class) = masks.predicted {
        shown.iter_mut().filter(|label| **label == UNLABELLED).for_each(|label| *label = class);
    }
    let ignore = arguments.ignore.0;
    if ignore != Some(UNLABELLED) {
        // Any foreground class that is not used otherwise will do: this one is not meant to be left out.
        let free = (1..UNLABELLED).rev().find(|class| !truths.present[usize::from(*class)]);
        let foreground = masks.truth.or(free).unwrap_or(UNLABELLED - 1);
        for label in &mut labels {
            *label = match *label {
                label if Some(label) == ignore => UNLABELLED,
                UNLABELLED => foreground,
                label => label,
            };
        }
        if masks.truth.is_none() {
            // A mask of 0 and 255 on both sides.
            shown.iter_mut().filter(|label| **label == UNLABELLED).for_each(|label| *label = foreground);
        }
    }
    if labels.iter().all(|label| *label == UNLABELLED) {
        return Ok(None);
    }
    Ok(Some(Scores::of_classes(&shown, &labels, width)?))
}

/// Scores against a truth that numbers objects. Predictions are classes, or numbers of objects too.
fn numbered(
    objects: Objects,
    predicted: LabelNumbers,
    wanted: LabelNumbers,
    ignore: Ignored,
) -> Result<Option<Scores>> {
    let width = wanted.width;
    let mut truth = object_numbers(wanted.numbers);
    for object in &mut truth {
        let ignored = ignore.0.is_some_and(|index| index != UNLABELLED && *object == u32::from(index));
        *object = match *object {
            _ if ignored => UNLABELLED_WIDE,
            UNLABELLED_WIDE if ignore.0.is_none() && wanted.transparent == 0 => u32::from(UNLABELLED),
            object => object,
        };
    }
    let classes = objects.classes(&truth, width);
    if classes.iter().all(|label| *label == UNLABELLED) {
        return Ok(None);
    }
    let most = objects.names().len();
    let (shown, found) = match predicted.numbers {
        Numbers::Bytes(values) if values.iter().all(|value| usize::from(*value) < most) => {
            let found = objects.in_classes(&values, width)?;
            (values, found)
        }
        numbers => {
            let found = object_numbers(numbers);
            (objects.classes(&found, width), found)
        }
    };
    Ok(Some(Scores::of_objects((&shown, &found), (&classes, &truth))?))
}

fn by_name(scores: &Scores) -> BTreeMap<&'static str, f64> {
    MEASURES.iter().map(|(name, value)| (*name, value(scores))).collect()
}

fn table(rows: &[(String, &Scores)]) -> Table {
    let mut titles = vec!["image"];
    titles.extend(MEASURES.map(|(name, _)| name));
    let mut table = Table::new(&titles);
    for (name, scores) in rows {
        let mut cells = vec![name.clone()];
        cells.extend(MEASURES.map(|(_, value)| format!("{:.4}", value(scores))));
        table.row(cells);
    }
    table
}

fn csv(rows: &[(String, &Scores)]) -> String {
    let mut lines = vec![format!("name,{}", MEASURES.map(|(name, _)| name).join(","))];
    for (name, scores) in rows {
        let quoted = if name.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", name.replace('"', "\"\""))
        } else {
            name.clone()
        };
        lines.push(format!("{quoted},{}", MEASURES.map(|(_, value)| value(scores).to_string()).join(",")));
    }
    lines.join("\n")
}
