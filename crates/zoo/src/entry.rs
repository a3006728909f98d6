//! The table of published files.

use std::path::Path;
use std::sync::OnceLock;

use crate::ZooError;

/// A published checkpoint: where it is, and what its publisher says of it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Entry {
    /// What it is called here: the file's name without its date and hash.
    pub name: String,
    /// The name of MMSegmentation's configuration, where one file is of one configuration.
    pub config: Option<String>,
    /// `fcn`, `pspnet`, `deeplabv3`, `deeplabv3plus` or `backbone`.
    pub method: String,
    /// Depth, stem and output stride, as MMSegmentation writes them: `R-50b-D8` has the 7x7 stem.
    pub backbone: String,
    /// What it was trained on.
    pub data: String,
    /// Height and width of the training crop, in pixels.
    pub crop: Option<String>,
    /// Iterations of training, such as `80k`.
    pub schedule: Option<String>,
    /// `f16` or `f32`, of the training.
    pub precision: String,
    /// Memory that training took on each device, in GB.
    pub memory_gb: Option<f64>,
    /// Mean IoU on the validation split at one scale, in percent.
    pub miou: Option<f64>,
    /// The same over several scales and mirror images, in percent.
    pub miou_ms_flip: Option<f64>,
    /// The file's address.
    pub url: String,
    /// The training log's address.
    pub log: Option<String>,
}

impl Entry {
    /// The file's name.
    pub fn file_name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or(&self.url)
    }

    /// The digits that the SHA-256 of the file begins with: what follows the last `-` of its name.
    pub fn sha256_prefix(&self) -> &str {
        let name = self.file_name();
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        stem.rsplit_once('-').map_or("", |(_, digits)| digits)
    }

    /// A line of a table; `None` if it is none.
    fn read(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [
            name,
            config,
            method,
            backbone,
            data,
            crop,
            schedule,
            precision,
            memory,
            miou,
            ms,
            url,
            log,
        ] = fields[..]
        else {
            return None;
        };
        let text = |field: &str| (field != "-").then(|| field.to_owned());
        let number = |field: &str| match field {
            "-" => Some(None),
            field => field.parse().ok().map(Some),
        };
        let entry = Self {
            name: name.to_owned(),
            config: text(config),
            method: method.to_owned(),
            backbone: backbone.to_owned(),
            data: data.to_owned(),
            crop: text(crop),
            schedule: text(schedule),
            precision: precision.to_owned(),
            memory_gb: number(memory)?,
            miou: number(miou)?,
            miou_ms_flip: number(ms)?,
            url: url.to_owned(),
            log: text(log),
        };
        let digits = entry.sha256_prefix();
        let is_hash = (8..=64).contains(&digits.len())
            && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        // A name becomes a path in the cache.
        let is_name = !entry.file_name().starts_with('.') && !entry.file_name().contains('\\');
        (is_hash && is_name && !name.is_empty()).then_some(entry)
    }
}

/// The published files: the four models in half precision first.
pub fn entries() -> &'static [Entry] {
    static TABLE: OnceLock<Vec<Entry>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let lines = lines(include_str!("zoo.tsv"));
        lines
            .map(|(_, line)| Entry::read(line).expect("the table is whole"))
            .collect()
    })
}

/// The published file of this name, or of the configuration of this name.
pub fn find(name: &str) -> Option<&'static Entry> {
    pick(entries(), name)
}

/// The entry of `table` of this name, or of the configuration of this name.
pub(crate) fn pick<'a>(table: &'a [Entry], name: &str) -> Option<&'a Entry> {
    let by_name = table.iter().find(|entry| entry.name == name);
    by_name.or_else(|| {
        table
            .iter()
            .find(|entry| entry.config.as_deref() == Some(name))
    })
}

/// The names in `table` that look most like `name`.
pub fn nearest<'a>(table: &'a [Entry], name: &str) -> Vec<&'a str> {
    let wanted = parts(name);
    let likeness = |entry: &Entry| {
        let found = parts(&entry.name);
        let common = wanted.iter().filter(|part| found.contains(part)).count();
        2 * common as i64 - found.len() as i64
    };
    let mut ranked: Vec<&Entry> = table.iter().collect();
    ranked.sort_by_key(|entry| -likeness(entry));
    ranked
        .into_iter()
        .take(3)
        .map(|entry| entry.name.as_str())
        .collect()
}

fn parts(name: &str) -> Vec<String> {
    let parts = name.split(|c: char| !c.is_alphanumeric());
    parts.map(str::to_lowercase).collect()
}

/// Reads a table of one's own in the format of the published one.
///
/// # Errors
/// A file that cannot be read, and a line that is no entry.
pub fn read_table(path: &Path) -> Result<Vec<Entry>, ZooError> {
    let text = halfseg_files::read_text(path).map_err(|source| ZooError::Read {
        path: path.to_owned(),
        source,
    })?;
    let entry = |(number, line): (usize, &str)| {
        Entry::read(line).ok_or_else(|| ZooError::Table {
            path: path.to_owned(),
            line: number,
        })
    };
    lines(&text).map(entry).collect()
}

/// Lines that are no remarks, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate();
    numbered
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_line_is_an_entry_of_its_own_name() {
        let mut names: Vec<&str> = entries().iter().map(|entry| entry.name.as_str()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for entry in entries() {
            assert!(entry.url.starts_with("https://"), "{}", entry.url);
            assert_eq!(find(&entry.name), Some(entry));
            assert_eq!(entry.sha256_prefix().len(), 8);
            let methods = ["fcn", "pspnet", "deeplabv3", "deeplabv3plus", "backbone"];
            assert!(methods.contains(&entry.method.as_str()));
        }
    }

    /// As the page *Mixed Precision Training* of MMSegmentation 0.30 has them.
    #[test]
    fn the_four_models_in_half_precision_are_there() {
        for (method, memory, miou, digits) in [
            ("fcn", 5.37, 76.80, "50245227"),
            ("pspnet", 5.34, 79.46, "ade37931"),
            ("deeplabv3", 5.75, 80.48, "bc86dc84"),
            ("deeplabv3plus", 6.35, 80.46, "cc58bc8d"),
        ] {
            let name = format!("{method}_r101-d8_512x1024_80k_fp16_cityscapes");
            let entry = find(&name).unwrap();
            assert_eq!((entry.memory_gb, entry.miou), (Some(memory), Some(miou)));
            assert_eq!(entry.sha256_prefix(), digits);
            assert_eq!(entry.file_name(), format!("{name}-{digits}.pth"));
            assert!(entry.log.as_ref().unwrap().ends_with(".log.json"));
            // And those that were trained in f32.
            let twin = find(&format!("{method}_r101-d8_512x1024_80k_cityscapes")).unwrap();
            assert_eq!(twin.precision, "f32");
        }
    }

    #[test]
    fn a_table_of_ones_own_names_the_line_that_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.tsv");
        let good =
            "mine\t-\tfcn\tR-18-D8\tours\t-\t-\tf32\t-\t-\t-\thttp://host/mine-0123abcd.pth\t-";
        fs::write(&path, format!("# remark\n\n{good}\n")).unwrap();
        let table = read_table(&path).unwrap();
        assert_eq!(pick(&table, "mine").unwrap().sha256_prefix(), "0123abcd");
        for wrong in [
            good.replace("0123abcd", "nohash!!"),
            good.replace("\tf32", ""),
            good.replace("mine-", "a/..-").replace("/mine", "/."),
        ] {
            fs::write(&path, format!("{good}\n{wrong}\n")).unwrap();
            let error = read_table(&path).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn a_name_that_is_none_has_neighbours() {
        let near = nearest(entries(), "fcn_r101_d8_512x1024_80k_fp16_cityscape");
        assert!(near[0].starts_with("fcn_r101"), "{near:?}");
        assert_eq!(nearest(entries(), "resnet101-v1c")[0], "resnet101_v1c");
    }
}
