#!/usr/bin/env bash
# Make the files of this folder again; needs ImageMagick, ffmpeg, and libheif-examples.
set -euo pipefail
cd "$(dirname "$0")"
convert -size 61x47 gradient:red-blue -fill lime -draw "rectangle 0,0 20,18" \
    -fill yellow -draw "rectangle 44,32 60,46" -depth 8 -define png:color-type=2 picture.png
half=(-alpha set -channel A -evaluate set 50% +channel)

convert picture.png -depth 16 deep.tif
convert picture.png -compress lzma lzma.tif
convert picture.png -interlace plane planar.tif
convert picture.png -depth 8 -colorspace Lab lab.tif
convert picture.png TIFF64:big.tif
convert picture.png -define quantum:format=floating-point -depth 32 float.tif
convert picture.png "${half[@]}" -depth 16 half-deep.tif
convert picture.png -orient RightTop turned.tif
convert picture.png -define quantum:format=floating-point -depth 32 -compress zip \
    -orient RightTop turned-float.tif

convert picture.png -define bmp:subtype=RGB565 fields-565.bmp
convert picture.png "${half[@]}" -define bmp:subtype=ARGB4444 half-fields-4444.bmp

convert picture.png -define png:bit-depth=16 -define png:color-type=2 deep.png
convert picture.png "${half[@]}" -define png:bit-depth=16 -define png:color-type=6 half-deep.png

ffmpeg -v error -y -i picture.png -c:v ljpeg -pix_fmt bgr24 -f image2 lossless.jpg
ffmpeg -v error -y -i picture.png -c:v jpegls -pix_fmt rgb24 -f image2 loco.jls

convert picture.png -quality 90 plain.jp2
convert picture.png -depth 16 deep.jp2
convert picture.png plain.j2k
convert picture.png "${half[@]}" half.jp2

heif-enc -p chroma=444 -q 98 picture.png -o cropped.heic # an odd size: clap
convert picture.png "${half[@]}" -define png:color-type=6 half.png
heif-enc -p chroma=444 -q 98 half.png -o half.heic
rm half.png

# Monochrome: one channel of H.265, 4:0:0.
convert picture.png -grayscale Rec601Luma -define png:color-type=0 grey.png
heif-enc -q 98 grey.png -o grey.heic
convert grey.png "${half[@]}" -define png:color-type=4 half-grey.png
heif-enc -q 98 half-grey.png -o half-grey.heic
rm grey.png half-grey.png
