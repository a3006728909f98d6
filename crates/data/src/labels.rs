//! The official Cityscapes tables.

/// One row of the official table of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Name.
    pub name: &'static str,
    /// The id in `*_labelIds.png`; the licence plate's -1 is left out.
    pub id: u8,
    /// The id that networks learn, 255 where it is ignored.
    pub train_id: u8,
    /// Category.
    pub category: &'static str,
    /// Whether single objects are told apart.
    pub has_instances: bool,
    /// Colour, RGB.
    pub color: [u8; 3],
}

/// The trainId that losses and scores leave out.
pub const IGNORE: u8 = 255;

/// Number of classes that are learnt and scored.
pub const CLASSES: usize = 19;

/// The categories that are scored.
pub const CATEGORIES: [&str; 7] = [
    "flat",
    "construction",
    "object",
    "nature",
    "sky",
    "human",
    "vehicle",
];

const fn row(
    name: &'static str,
    id: u8,
    train_id: u8,
    category: &'static str,
    has_instances: bool,
    color: [u8; 3],
) -> Label {
    Label {
        name,
        id,
        train_id,
        category,
        has_instances,
        color,
    }
}

/// The official table of labels, ordered by id.
pub const LABELS: [Label; 34] = [
    row("unlabeled", 0, 255, "void", false, [0, 0, 0]),
    row("ego vehicle", 1, 255, "void", false, [0, 0, 0]),
    row("rectification border", 2, 255, "void", false, [0, 0, 0]),
    row("out of roi", 3, 255, "void", false, [0, 0, 0]),
    row("static", 4, 255, "void", false, [0, 0, 0]),
    row("dynamic", 5, 255, "void", false, [111, 74, 0]),
    row("ground", 6, 255, "void", false, [81, 0, 81]),
    row("road", 7, 0, "flat", false, [128, 64, 128]),
    row("sidewalk", 8, 1, "flat", false, [244, 35, 232]),
    row("parking", 9, 255, "flat", false, [250, 170, 160]),
    row("rail track", 10, 255, "flat", false, [230, 150, 140]),
    row("building", 11, 2, "construction", false, [70, 70, 70]),
    row("wall", 12, 3, "construction", false, [102, 102, 156]),
    row("fence", 13, 4, "construction", false, [190, 153, 153]),
    row(
        "guard rail",
        14,
        255,
        "construction",
        false,
        [180, 165, 180],
    ),
    row("bridge", 15, 255, "construction", false, [150, 100, 100]),
    row("tunnel", 16, 255, "construction", false, [150, 120, 90]),
    row("pole", 17, 5, "object", false, [153, 153, 153]),
    row("polegroup", 18, 255, "object", false, [153, 153, 153]),
    row("traffic light", 19, 6, "object", false, [250, 170, 30]),
    row("traffic sign", 20, 7, "object", false, [220, 220, 0]),
    row("vegetation", 21, 8, "nature", false, [107, 142, 35]),
    row("terrain", 22, 9, "nature", false, [152, 251, 152]),
    row("sky", 23, 10, "sky", false, [70, 130, 180]),
    row("person", 24, 11, "human", true, [220, 20, 60]),
    row("rider", 25, 12, "human", true, [255, 0, 0]),
    row("car", 26, 13, "vehicle", true, [0, 0, 142]),
    row("truck", 27, 14, "vehicle", true, [0, 0, 70]),
    row("bus", 28, 15, "vehicle", true, [0, 60, 100]),
    row("caravan", 29, 255, "vehicle", true, [0, 0, 90]),
    row("trailer", 30, 255, "vehicle", true, [0, 0, 110]),
    row("train", 31, 16, "vehicle", true, [0, 80, 100]),
    row("motorcycle", 32, 17, "vehicle", true, [0, 0, 230]),
    row("bicycle", 33, 18, "vehicle", true, [119, 11, 32]),
];

/// Colours of the trainIds, RGB.
pub const PALETTE: [[u8; 3]; CLASSES] = {
    let mut palette = [[0; 3]; CLASSES];
    let mut i = 0;
    while i < LABELS.len() {
        if LABELS[i].train_id != IGNORE {
            palette[LABELS[i].train_id as usize] = LABELS[i].color;
        }
        i += 1;
    }
    palette
};

/// The trainId of a labelId, or nothing where the table lacks it.
pub fn train_id(label_id: u8) -> Option<u8> {
    LABELS.get(label_id as usize).map(|label| label.train_id)
}

/// The labelId of a trainId; 0 (unlabeled) for any other value.
pub fn label_id(train_id: u8) -> u8 {
    LABELS
        .iter()
        .find(|label| label.train_id == train_id && train_id != IGNORE)
        .map_or(0, |label| label.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_positions_and_every_class_has_one_label() {
        for (i, label) in LABELS.iter().enumerate() {
            assert_eq!(label.id as usize, i);
        }
        for class in 0..CLASSES as u8 {
            assert_eq!(train_id(label_id(class)), Some(class));
        }
        assert_eq!(train_id(34), None);
        assert_eq!(label_id(IGNORE), 0);
        assert_eq!(PALETTE[0], [128, 64, 128]);
    }
}
