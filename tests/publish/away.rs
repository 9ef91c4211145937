//! What a cache knows of its image when the origin is not there any more.

use vmstream::Image;

use crate::support::*;

#[test]
fn a_whole_cache_needs_no_origin_not_even_to_say_what_kind_of_image_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    small_image(&at("disk.img"));
    let link = publish(&at("disk.img"), &at("site"), &[]);
    let options = [format!("source={link}"), format!("cache={}", text(&at("c")))];
    let size = std::fs::metadata(at("disk.img")).unwrap().len();
    let mut wanted = vec![0; size as usize];
    let image = Image::open(&options).unwrap();
    image.read_at(0, &mut wanted).unwrap();
    let head = image.published().unwrap().head();
    image.close().unwrap();
    assert_eq!(wanted, std::fs::read(at("disk.img")).unwrap());
    assert_eq!(head.as_ref().map(|head| head.root().to_string()).as_deref(), link.rsplit('#').next());

    std::fs::remove_dir_all(at("site")).unwrap();
    let image = Image::open(&options).unwrap();
    let mut found = vec![0; size as usize];
    image.read_at(0, &mut found).unwrap();
    assert_eq!(found, wanted);
    let published = image.published().unwrap();
    assert!(published.tree().is_none(), "nobody was asked");
    assert_eq!(published.head(), head);
    image.close().unwrap();

    // What is not the head of this image is none.
    std::fs::write(at("c").join("disk.head"), [0; 112]).unwrap();
    let image = Image::open(&options).unwrap();
    assert_eq!(image.published().unwrap().head(), None);
}
