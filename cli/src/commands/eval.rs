//! `mdm eval`: how well predicted labels agree with true ones.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use clap::Args;
use mdm_train::metrics::Scores;
use serde::Serialize;

use crate::error::{CliError, Result, failed, warn};
use crate::files::{label_files, stem};
use crate::output::{Table, print, print_json};
use mdm_images::{UNLABELLED, read_labels};

const EXAMPLES: &str = "\
Labels are PNG files whose pixels are class indices; 0 is background. Files are paired by name without the ending. Every true label image needs a prediction.

  dice         overlap of the foreground (every class but 0): 2 |P and T| / (|P| + |T|)
  iou          the same as intersection over union
  object_dice  Dice object by object, as in the GlaS challenge
  aji          aggregated Jaccard index, as in the MoNuSeg challenge
  mean_iou     intersection over union of each class, averaged over the classes

Objects are connected regions of the foreground. The deviation is the one between images (divisor n - 1).

Examples:
  mdm eval --prediction out/ --truth labels/
  mdm eval --prediction out/ --truth labels/ --json > scores.json";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Label PNG or folder of them, as `mdm segment` wrote them
    #[arg(long, value_name = "PATH")]
    prediction: PathBuf,

    /// Label PNG or folder of them, as people drew them
    #[arg(long, value_name = "PATH")]
    truth: PathBuf,

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
    let pairs = Pairs::new(&arguments.prediction, &truths)?;
    let (mut names, mut scores, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for truth in &truths {
        match pairs.of(truth).and_then(|prediction| score(prediction, truth, arguments.ignore)) {
            Ok(of_image) => {
                names.push(stem(truth));
                scores.push(of_image);
            }
            Err(error) => {
                eprintln!("error: {error}");
                failures.push(Failure { name: stem(truth), error: error.to_string() });
            }
        }
    }
    if scores.is_empty() {
        return Err(CliError::Failed(format!(
            "no image could be compared: {} and {} hold no pair of label PNGs of the same name and size",
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
        print_json(&Report { mean: by_name(&mean), std: by_name(&std), images, failed: failures })?;
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
struct Pairs {
    /// The one prediction, whatever its name, where one file is compared with one.
    only: Option<PathBuf>,
    by_name: HashMap<String, PathBuf>,
    folder: PathBuf,
}

impl Pairs {
    fn new(prediction: &Path, truths: &[PathBuf]) -> Result<Self> {
        let files = label_files(prediction)?;
        let only = (prediction.is_file() && truths.len() == 1).then(|| prediction.to_owned());
        let by_name: HashMap<String, PathBuf> = files.into_iter().map(|file| (stem(&file), file)).collect();
        let known: Vec<String> = truths.iter().map(|truth| stem(truth)).collect();
        let extra = by_name.keys().filter(|name| !known.contains(name)).count();
        if only.is_none() && extra > 0 {
            warn(format!(
                "{}: {extra} predictions have no true labels and do not count",
                prediction.display()
            ));
        }
        Ok(Self { only, by_name, folder: prediction.to_owned() })
    }

    fn of(&self, truth: &Path) -> Result<&Path> {
        if let Some(only) = &self.only {
            return Ok(only);
        }
        let name = stem(truth);
        self.by_name.get(&name).map(PathBuf::as_path).ok_or_else(|| {
            failed(truth, format!("has no prediction: there is no {name}.png in {}", self.folder.display()))
        })
    }
}

fn score(prediction: &Path, truth: &Path, ignore: Ignored) -> Result<Scores> {
    let predicted = read_labels(prediction)?;
    let mut labels = read_labels(truth)?;
    if (predicted.width, predicted.height) != (labels.width, labels.height) {
        return Err(failed(
            prediction,
            format!(
                "is {} x {} pixels, but {} is {} x {}; labels must have the size of their image",
                predicted.width,
                predicted.height,
                truth.display(),
                labels.width,
                labels.height
            ),
        ));
    }
    if ignore.0 != Some(UNLABELLED) {
        for label in &mut labels.values {
            *label = match *label {
                label if Some(label) == ignore.0 => UNLABELLED,
                // Any foreground class will do: this one is not meant to be left out.
                UNLABELLED => UNLABELLED - 1,
                label => label,
            };
        }
    }
    Ok(Scores::of_classes(&predicted.values, &labels.values, labels.width)?)
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
